"""`refquant generate`: text from a model."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from refquant.cli.console import print_json, printable
from refquant.errors import ModelError, RefquantError

if TYPE_CHECKING:
    from refquant.models.model import Model
    from refquant.models.sampling import Sampling
    from refquant.models.tokenizer import Ids, Tokenizer

DESCRIPTION = """\
Continue a text with a model, and print what it writes as it comes.

The prompt itself is not printed. BOS is put before it where the tokenizer says so. The text ends at an EOS token,
after --max-tokens tokens, or where the model's positions end. Weights are widened to float32 once, in memory.

Without a temperature each token is the likeliest one. With one, tokens are drawn: temperature, then --top-k, --top-p
and --min-p, in that order; the same seed draws the same text from the same logits.
"""

EPILOG = """\
examples:
  refquant generate                                        the embedded model, from nothing
  refquant generate --prompt "Once upon a time"
  refquant generate MODEL --prompt "def fib(n):" --max-tokens 64
  refquant generate MODEL --prompt "The sea" --temperature 0.8 --top-p 0.95 --seed 1
  refquant generate MODEL --chat "What is a NaN?" --system "Answer in one sentence."
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "generate",
        help="continue a text with a model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a GGUF file or a Hugging Face folder (default: the embedded model)"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--prompt", metavar="TEXT", default="", help="text to continue (default: none, BOS alone)")
    start.add_argument("--chat", metavar="TEXT", help="a message to answer, through the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="the system message before --chat")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="tokens to add at most (default: 256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default: 0)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens (default: all)")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest that sum to P (default: 1)",
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="leave out what is below P × the likeliest (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (default: 0)")
    parser.add_argument("--no-bos", action="store_true", help="put no BOS before the prompt")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end, and nothing before it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the text, or the document."""
    from refquant.models import embedded, load_model
    from refquant.models.generation import finish_reason, generate
    from refquant.models.sampling import Sampling

    if args.chat is None and args.system is not None:
        raise RefquantError("--system given without --chat: give the message to answer with --chat")
    if args.chat is not None and args.no_bos:
        raise RefquantError("--no-bos given with --chat: the chat template says where BOS goes")
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p)
    model = load_model(args.model or embedded.path())
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ModelError(f"{model.path}: no tokenizer; generate needs one to read the prompt and write text")
    prompt = _prompt(args, tokenizer)
    started = time.perf_counter()
    tokens = generate(model.in_memory(), prompt, max_tokens=args.max_tokens, sampling=sampling, seed=args.seed)
    if not args.json:
        _stream(tokens, tokenizer, prompt)
        return 0
    ids = list(tokens)
    seconds = time.perf_counter() - started
    text = _text(ids, tokenizer, prompt)
    reason = finish_reason(ids, args.max_tokens, tokenizer.eos_ids)
    print_json(_document(args, model, sampling, prompt, ids, text, reason, seconds))
    return 0


def _prompt(args: argparse.Namespace, tokenizer: "Tokenizer") -> "Ids":
    if args.chat is not None:
        from refquant.models.chat import encode_chat

        system = [] if args.system is None else [{"role": "system", "content": args.system}]
        return encode_chat(tokenizer, [*system, {"role": "user", "content": args.chat}])
    ids = tokenizer.encode(args.prompt) if args.no_bos else tokenizer.encode_prompt(args.prompt)
    if ids.size == 0:
        raise RefquantError("nothing to start from: the prompt is empty and no BOS is added; give a --prompt")
    return ids


def _stream(tokens: Iterator[int], tokenizer: "Tokenizer", prompt: "Ids") -> None:
    """Print each piece of text once it is certain; a terminal gets control characters as escapes."""
    stream = tokenizer.stream(prompt)
    guarded = sys.stdout.isatty()

    def show(piece: str) -> None:
        print(_guard(piece) if guarded else piece, end="", flush=True)

    for token in tokens:
        show(stream.push(token))
    show(stream.flush() + "\n")


def _guard(piece: str) -> str:
    """The piece without what could steer a terminal; line breaks and tabs stay."""
    return "".join(c if c in "\n\t" else printable(c) for c in piece)


def _text(ids: list[int], tokenizer: "Tokenizer", prompt: "Ids") -> str:
    stream = tokenizer.stream(prompt)
    return "".join(stream.push(token) for token in ids) + stream.flush()


def _document(
    args: argparse.Namespace,
    model: "Model",
    sampling: "Sampling",
    prompt: "Ids",
    ids: list[int],
    text: str,
    reason: str,
    seconds: float,
) -> dict[str, object]:
    return {
        "model": str(model.path) if args.model else "stories260K (embedded)",
        "prompt_ids": prompt.tolist(),
        "ids": ids,
        "text": text,
        "finish_reason": reason,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": args.seed,
        "tokens_per_second": len(ids) / seconds,
    }
