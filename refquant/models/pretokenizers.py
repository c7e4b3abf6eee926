r"""The pre-tokenizers that `tokenizer.ggml.pre` names, as data: how a text is cut into words before merging.

Each is a sequence of patterns. A pattern cuts every piece of the step before into its matches and what stands between
them. Patterns with a property (`\p{…}`) are applied to the classes of characters, the others to the characters
themselves (spec/tokenizer.md, section 2). Sources: the models' own tokenizer.json, in the form in which llama.cpp's
src/llama-vocab.cpp and src/unicode.cpp apply them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from refquant.errors import unknown_name
from refquant.models.unicode_classes import MEMBERS, by_class, with_plain_spaces


@dataclass(frozen=True)
class PreTokenizer:
    """How a byte-pair tokenizer prepares a text.

    Attributes:
        patterns: regular expressions, applied one after the other.
        ignores_merges: whether a word that is a token is taken whole.
        adds_bos: whether BOS is put first where the metadata does not say.
        always_bos: whether BOS is put first whatever the metadata says.
        has_bos: whether there is a BOS token where the metadata names none.
        byte_level: whether the vocabulary is written in GPT-2's letters for bytes; otherwise in plain characters,
            with tokens `<0x00>` … `<0xFF>` for bytes.
        escapes_spaces: whether a space is written as U+2581.
        whole_newlines: whether a run of newlines that is a token is taken whole.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False
    always_bos: bool = False
    has_bos: bool = True
    byte_level: bool = True
    escapes_spaces: bool = False
    whole_newlines: bool = False


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer of that name.

    Raises:
        UnknownNameError: there is none; the message names near ones.
    """
    if name not in PRE_TOKENIZERS:
        raise unknown_name("pre-tokenizer (tokenizer.ggml.pre)", name, PRE_TOKENIZERS)
    return PRE_TOKENIZERS[name]


def words(text: str, patterns: tuple[str, ...]) -> Iterator[str]:
    """The text cut into words, in order and without loss."""
    ends = [len(text)]
    for pattern in patterns:
        compiled, on_classes = _compiled(pattern)
        seen = by_class(text) if on_classes else with_plain_spaces(text)
        ends = _cut(seen, compiled, ends, before=pattern not in _KEEPING)
    start = 0
    for end in ends:
        yield text[start:end]
        start = end


def _cut(text: str, pattern: re.Pattern[str], ends: list[int], before: bool) -> list[int]:
    """The ends of the pieces that a pattern cuts pieces into: behind every match, and `before` each as well."""
    finer: list[int] = []
    start = 0
    for end in ends:
        at = start
        for match in pattern.finditer(text, start, end):
            if before and match.start() > at:
                finer.append(match.start())
            at = match.end()
            if at > match.start():
                finer.append(at)
        if at < end:
            finer.append(end)
        start = end
    return finer


@cache
def _compiled(pattern: str) -> tuple[re.Pattern[str], bool]:
    """The pattern for Python's `re`, and whether it is one over classes."""
    parts = re.split(r"(\\p\{\w+\}|\\.|\[|\])", pattern)
    inside = False
    for i, part in enumerate(parts):
        if part in ("[", "]"):
            inside = part == "["
        elif part in MEMBERS:
            parts[i] = MEMBERS[part] if inside else f"[{MEMBERS[part]}]"
    return re.compile("".join(parts), re.ASCII), r"\p{" in pattern


_CONTRACTION: Final = "'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_ASCII_SYMBOL_WORD: Final = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_MARKED_WORD: Final = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_CASED_WORD: Final = r"[^\r\n\p{L}\p{N}]?(?:[\p{Lu}]*[\p{Ll}]+|[\p{Lu}]+[\p{Ll}]*)"
# A mark may stand before a word or in it: the second form is tried when the first fails with and without one before.
_LOWER_MARKED_WORD: Final = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+"
_UPPER_MARKED_WORD: Final = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]+[\p{Ll}\p{M}]*"
_CASED_SYMBOLS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
# 1234567 is 1 234 567: the short group is at the head of a run.
_DIGITS_FROM_THE_RIGHT: Final = r"(?<!\p{N})\p{N}{1,2}(?=(?:\p{N}{3})*(?!\p{N}))|\p{N}{3}"
_KEEPING: Final = {_DIGITS_FROM_THE_RIGHT}  # what stands before a match stays with it
_LINES: Final = r"[^\n]+|\n+"
_HAN_KANA: Final = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK: Final = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BETWEEN_STOPS: Final = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3: Final = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2: Final = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35: Final = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_DEEPSEEK3: Final = rf"{_ASCII_SYMBOL_WORD}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_SPARK: Final = rf"{_ASCII_SYMBOL_WORD}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
_YOUTU: Final = (
    r"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    rf"\ufe30-\ufe4f]+|[\u3105-\u312f]+|{_HAN_KANA}",
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTION})?|\p{{N}}|{_CASED_SYMBOLS}|{_SPACES}",
)
_TINY_AYA: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTION})?|\p{{N}}{{1,3}}|{_CASED_SYMBOLS}|{_SPACES}"
)
_GPT4O: Final = rf"{_CASED_WORD}(?:{_CONTRACTION})?|\p{{N}}{{1,3}}|{_CASED_SYMBOLS}|{_SPACES}"
_GRANITE: Final = (
    rf"{_LOWER_MARKED_WORD}(?:{_CONTRACTION})?|{_UPPER_MARKED_WORD}(?:{_CONTRACTION})?"
    rf"|\p{{N}}{{1,3}}|{_CASED_SYMBOLS}|{_SPACES}"
)
_TEKKEN: Final = rf"{_CASED_WORD}|\p{{N}}|{_CASED_SYMBOLS}|{_SPACES}"
_EXAONE_MOE: Final = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BAILING: Final = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_KIMI: Final = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}\p{{Han}}]?[A-Za-z\x82]+(?:{_CONTRACTION})?|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
)
_SEED: Final = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_CASED_LETTERS: Final = (  # the letters of scripts that have cases, as DeepSeek's tokenizer.json lists them
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    r"\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    r"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    r"\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    r"\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    r"\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    r"\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    r"\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    r"\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM: Final = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"(?<!\s)\s+\Z",  # a piece that begins inside a run of spaces and has nothing else is whole anyway
    _CJK,
    r"\p{N}+",
)
_ASIAN_SCRIPTS: Final = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    r"\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_CHAMELEON: Final = (
    r"<sentinel:[0-9]+>",
    r"IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_DEFAULT: Final = (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

_PLAIN = PreTokenizer((_GPT2,))
_DIGITS_APART = PreTokenizer((r"\p{N}", _GPT2))
_LIKE_LLAMA3 = PreTokenizer((_LLAMA3,), ignores_merges=True, adds_bos=True)
_LIKE_QWEN2 = PreTokenizer((_QWEN2,))
_LIKE_DEEPSEEK3 = PreTokenizer((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3))
_LIKE_GPT4O = PreTokenizer((_GPT4O,))
_LIKE_BLOOM = PreTokenizer((_BETWEEN_STOPS,))
_LIKE_GEMMA4 = PreTokenizer((_LINES,), always_bos=True, byte_level=False, escapes_spaces=True, whole_newlines=True)
_LIKE_TINY_AYA = PreTokenizer((_DIGITS_FROM_THE_RIGHT, _TINY_AYA))

PRE_TOKENIZERS: Final[dict[str, PreTokenizer]] = {
    "default": PreTokenizer(_DEFAULT),
    "minicpm5": PreTokenizer(
        (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_SPACES}"), ignores_merges=True
    ),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        _LIKE_LLAMA3,
    ),
    "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _LIKE_DEEPSEEK3),
    "spark2_5": PreTokenizer((r"\p{N}{1,3}", _HAN_KANA, _SPARK, r"\p{N}")),
    "youtu": PreTokenizer(_YOUTU, ignores_merges=True),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    **dict.fromkeys(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS_APART
    ),
    "jais-2": PreTokenizer(
        (
            rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s*[\r\n]+|"
            + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s",
        )
    ),
    "gemma4": _LIKE_GEMMA4,
    "granite-embed-multi-311m": _LIKE_GEMMA4,
    "sarvam-moe": PreTokenizer((_LINES,), byte_level=False, escapes_spaces=True),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez", "grok-2"),
        _LIKE_QWEN2,
    ),
    "qwen35": PreTokenizer((_QWEN35,)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer((_LLAMA3,))),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _LIKE_BLOOM),
    "viking": PreTokenizer((_BETWEEN_STOPS, r"\p{N}")),
    "chatglm-bpe": PreTokenizer((_LLAMA3,), has_bos=False),
    **dict.fromkeys(("glm4", "glm5"), PreTokenizer((_LLAMA3,), ignores_merges=True, has_bos=False)),
    "tekken": PreTokenizer((_TEKKEN,), ignores_merges=True, adds_bos=True),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "chameleon": PreTokenizer(_CHAMELEON, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _LIKE_GPT4O),
    "granite-embed-multi-97m": PreTokenizer((_GRANITE,), ignores_merges=True),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _LIKE_TINY_AYA),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(?:\d{3})+(?!\d))")),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), PreTokenizer((_BAILING,))),
    "seed-coder": PreTokenizer((_SEED,)),
    "kimi-k2": PreTokenizer((_KIMI,)),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}",)),
    "afmoe": PreTokenizer((_DIGITS_FROM_THE_RIGHT, _ASIAN_SCRIPTS, _DEEPSEEK3)),
    "laguna": PreTokenizer((_LINES, _QWEN2)),
}
"""Every pre-tokenizer by its names but `whitespace`, which is the whole tokenizer of one embedding model."""
