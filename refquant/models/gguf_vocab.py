"""The vocabulary of a GGUF file: `tokenizer.ggml.tokens` with their types, and the tokens that have a role.

What llama.cpp infers where the metadata is silent is inferred here too (spec/tokenizer.md, section 4): default ids,
the tokens that end a text by their names, and types that are known to be wrong.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from refquant.models.gguf_fields import Fields
from refquant.models.special_tokens import SpecialToken

PREFIX: Final = "tokenizer.ggml."


class TokenType(IntEnum):
    """What a token is, by the numbers of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, eq=False)
class Vocab:
    """Tokens by id.

    Attributes:
        tokens: their texts as stored; bytes that are no UTF-8 are lone surrogates.
        types: what each is.
        scores: of each; zeros where the file has none.
        ids: the id of each text.
    """

    tokens: list[str]
    types: list[TokenType]
    scores: list[float]
    ids: Mapping[str, int]

    def with_type(self, tokens: Iterable[int], kind: TokenType) -> "Vocab":
        """The vocabulary with some tokens being of another type."""
        types = list(self.types)
        for token in tokens:
            types[token] = kind
        return replace(self, types=types)

    def of_types(self, *kinds: TokenType) -> list[int]:
        """The tokens of some types, ascending."""
        return [i for i, kind in enumerate(self.types) if kind in kinds]


def read_vocab(fields: Fields) -> Vocab:
    """The tokens with types and scores.

    Raises:
        CheckpointError: no tokens, the same token twice, or fewer types or scores than tokens.
    """
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(fields.strings(PREFIX + "tokens"))]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        second = next(i for i, token in enumerate(tokens) if ids[token] != i)
        raise fields.error(
            PREFIX + "tokens",
            f"tokens {second} and {ids[tokens[second]]} are both {tokens[second]!r}; each must differ",
        )
    known = {int(kind): kind for kind in TokenType}
    types = fields.numbers(PREFIX + "token_type", len(tokens), default=int(TokenType.NORMAL))
    return Vocab(
        tokens=tokens,
        types=[known.get(int(kind), TokenType.UNDEFINED) for kind in types],
        scores=[float(score) for score in fields.numbers(PREFIX + "scores", len(tokens), default=0)],
        ids=ids,
    )


# Roles by the key that names their token.
ROLES: Final = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # so spelt in the files
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "fim_pre": "fim_pre_token_id",
    "fim_suf": "fim_suf_token_id",
    "fim_mid": "fim_mid_token_id",
    "fim_pad": "fim_pad_token_id",
    "fim_rep": "fim_rep_token_id",
    "fim_sep": "fim_sep_token_id",
}
_OLD_KEYS: Final = {"fim_pre": "prefix_token_id", "fim_suf": "suffix_token_id", "fim_mid": "middle_token_id"}

# The texts that stand for a role where no key names its token.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "eot": (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
        "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
# The texts that end a text in every model that has them.
_ENDS: Final = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
_ALWAYS_TEXT: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True, eq=False)
class Special:
    """The tokens that have a role.

    Attributes:
        vocab: the vocabulary with the types that the roles call for.
        ids: token ids by role (`bos`, `eos`, `unk`, …); a role that no token has is missing.
        ends: every token that ends a text.
    """

    vocab: Vocab
    ids: Mapping[str, int]
    ends: frozenset[int]


def read_special(fields: Fields, vocab: Vocab, defaults: Mapping[str, int]) -> Special:
    """The special tokens: those that the metadata names, then the defaults of the tokenizer model, then by name.

    An id beyond the vocabulary counts as none.

    Raises:
        CheckpointError: an id that is not an integer.
    """
    ids = {role: i for role, i in defaults.items() if i < len(vocab.tokens)}
    for role, key in [*ROLES.items(), *_OLD_KEYS.items()]:
        given = fields.integer(PREFIX + key)
        if given is not None and 0 <= given < len(vocab.tokens):
            ids[role] = given
    control = set()
    for role, names in _NAMES.items():
        found = sorted(vocab.ids[name] for name in names if name in vocab.ids)
        if role not in ids and found:
            ids[role] = found[0]
            control.add(found[0])
    ends = {vocab.ids[name] for name in _ENDS if name in vocab.ids}
    vocab = vocab.with_type(control | ends, TokenType.CONTROL)
    vocab = vocab.with_type((vocab.ids[name] for name in _ALWAYS_TEXT if name in vocab.ids), TokenType.USER_DEFINED)
    ends |= {ids[role] for role in ("fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom") if role in ids}
    return _without_false_ends(Special(vocab, ids, frozenset(ends)))


def _without_false_ends(special: Special) -> Special:
    """Two families have a token of another family's end name that ends nothing."""
    has = {special.vocab.tokens[i] for i in special.ends}
    calls = has & {"<|call|>", "<|calls|>"}
    false = {}
    if "<|end|>" in has and calls and has & {"<|return|>", "<|flush|>"}:
        false["<|end|>"] = TokenType.USER_DEFINED
    if "</s>" in has and has & {"<|tool_response>", "<|plamo:eos|>"}:
        false["</s>"] = TokenType.NORMAL
    vocab, ends = special.vocab, special.ends
    for name, kind in false.items():
        vocab = vocab.with_type([vocab.ids[name]], kind)
        ends -= {vocab.ids[name]}
    return Special(vocab, special.ids, ends)


def find_special(fields: Fields, vocab: Vocab) -> list[SpecialToken]:
    """The tokens that are found in a text before it is cut into words, and the white space that belongs to them.

    The metadata has no place for that white space; it is known for families of models.
    """
    tokens = vocab.of_types(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    pre = fields.string(PREFIX + "pre") or ""
    architecture = fields.string("general.architecture") or ""
    name = (fields.string("general.name") or "").lower()
    left: set[str] = set()
    right: set[str] = set()
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        left = {"<mask>"}
    elif "phi-3" in name or "phi3" in name:
        right = {vocab.tokens[i] for i in tokens} - {"<unk>", "<s>", "<|endoftext|>"}
    elif "modern-bert" in name:
        left = {"[MASK]"}
    texts = [(i, vocab.tokens[i]) for i in tokens]
    return [SpecialToken(i, text, strips_left=text in left, strips_right=text in right) for i, text in texts]
