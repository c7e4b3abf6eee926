"""Every ggml type, encoded and decoded: million weights a second of refquant and three peers, in one run.

    python -m benchmarks.ggml_formats [--types q4_k,iq2_xs] [--seconds 0.3] [--json]

from the repository, with the `peers` extra. The peers are libgguf's NumPy encoder (not its C library), gguf-py, and
ggml's own C on one thread (`tests/peers/llama_cpp.py` builds it); refquant is the NumPy reference, through
`rq.quantize` and `rq.dequantize`. The input is rows of 4096 from N(0, 0.02²), or one shorter row where a peer needs
more than a second for that many. A call that is not counted comes first; of at least two that are, the fastest counts.
Times are the processor's, so that other work on the machine disturbs the ratios less.

Where a type demands an importance matrix, libgguf makes one up from the rows, so its figure stands beside those with
one. `first use` is the first encoding and decoding of one block in a process that has imported refquant.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import gguf
import libgguf.libgguf_numpy as libgguf
import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

import refquant as rq
from refquant.arrays import Float32, UInt8
from refquant.formats.ggml import GgmlFormat
from tests.peers import test_ggml as c

ROW = 4096
MOST = 1 << 22  # weights of one call
PEERS = ("libgguf", "gguf-py", "ggml C")


class Input(NamedTuple):
    """What one call takes: weights (rows, n), an importance (n,) or none, and the bytes that they are encoded to."""

    w: Float32
    importance: Float32 | None
    blocks: UInt8


Call = Callable[[Input], object]


def main() -> int:
    args = arguments()
    formats = [fmt for fmt in map(rq.get_format, args.types or rq.formats()) if isinstance(fmt, GgmlFormat)]
    results = []
    for fmt in formats:
        first = first_use(fmt)
        for action in ("encode", "encode, imatrix", "decode"):
            rates = {}
            for name, call in calls(fmt, action).items():
                with threadpool_limits(1):
                    rates[name] = rate(call, fmt, action, args.seconds)
                print(f"{fmt.name} {action}: {name} {figure(rates[name])}", file=sys.stderr)
            if rates:
                results.append({"type": fmt.name, "action": action, "rates": rates, "first_use_ms": first})
    if args.json:
        print(json.dumps(results))
    else:
        Console(width=120).print(table(results))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", type=lambda text: text.split(","), help="comma-separated (default: every type)")
    parser.add_argument("--seconds", type=float, default=0.3, help="what one call should take (default: 0.3)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def calls(fmt: GgmlFormat, action: str) -> dict[str, Call]:
    """Who can do this to the type, refquant first."""
    makers = {"encode": encoders, "encode, imatrix": weighted_encoders, "decode": decoders}
    return makers[action](fmt)


def encoders(fmt: GgmlFormat) -> dict[str, Call]:
    if fmt.needs_imatrix:
        return {}
    found: dict[str, Call] = {"refquant": lambda given: rq.quantize(given.w, fmt)}
    for name, module in (("libgguf", libgguf), ("gguf-py", gguf.quants)):
        if peer := peer_type(fmt, module.quantize):
            found[name] = lambda given, module=module, peer=peer: module.quantize(given.w, peer)
    return found | {"ggml C": lambda given: c.theirs(fmt, given.w)}


def weighted_encoders(fmt: GgmlFormat) -> dict[str, Call]:
    if fmt.type.encode_weighted is None:
        return {}
    found: dict[str, Call] = {"refquant": lambda given: rq.quantize(given.w, fmt, imatrix=given.importance)}
    if fmt.needs_imatrix and (peer := peer_type(fmt, libgguf.quantize)):
        found["libgguf"] = lambda given: libgguf.quantize(given.w, peer)
    return found | {"ggml C": lambda given: c.theirs(fmt, given.w, given.importance)}


def decoders(fmt: GgmlFormat) -> dict[str, Call]:
    found: dict[str, Call] = {"refquant": lambda given: rq.dequantize(given.blocks, fmt, given.w.shape)}
    for name, module in (("libgguf", libgguf), ("gguf-py", gguf.quants)):
        if peer := peer_type(fmt, module.dequantize):
            found[name] = lambda given, module=module, peer=peer: module.dequantize(given.blocks, peer)
    if fmt.name not in c.UNREADABLE:
        found["ggml C"] = lambda given: c.decoded_by_them(fmt, given.blocks, given.w.size)
    return found


def peer_type(fmt: GgmlFormat, function: Callable[..., object]) -> gguf.GGMLQuantizationType | None:
    """The type as gguf-py names it, where the peer's function takes it."""
    try:
        peer = gguf.GGMLQuantizationType[fmt.name.upper()]
        if function in (libgguf.dequantize, gguf.quants.dequantize):
            function(np.zeros((1, fmt.layout((256,))["blocks"].shape[0]), np.uint8), peer)
        else:
            function(np.zeros((1, 256), np.float32), peer)
    except (KeyError, NotImplementedError):
        return None
    return peer


def rate(call: Call, fmt: GgmlFormat, action: str, wanted: float) -> float:
    """Million weights a second: of four times as many weights each time, until that is no faster and takes its time."""
    size, before = 256, 0.0
    given = prepared(fmt, action, size)
    call(given)
    while True:
        taken = seconds(call, given)
        settled = taken > wanted / 2 and size / taken < 1.2 * before
        if settled or taken > max(1, 2 * wanted) or size == MOST:
            break
        before = size / taken
        size *= 4
        given = prepared(fmt, action, size)
    others = [seconds(call, given) for _ in range(max(1, min(6, int(wanted * 4 / taken))))]
    return size / min(taken, *others) / 1e6


def prepared(fmt: GgmlFormat, action: str, size: int) -> Input:
    rng = np.random.default_rng(0)
    n = min(size, ROW)
    w = (rng.standard_normal((size // n, n)) * 0.02).astype(np.float32)
    importance = rng.chisquare(2, n).astype(np.float32)
    if action == "decode":
        return Input(w, None, fmt.encode_bytes(w, importance if fmt.needs_imatrix else None))
    return Input(w, importance, np.empty(0, np.uint8))


def seconds(call: Call, given: Input) -> float:
    """Of the processor, which on one thread is what an idle machine's clock shows."""
    begin = time.process_time()
    call(given)
    return time.process_time() - begin


def first_use(fmt: GgmlFormat) -> float:
    """Milliseconds of encoding and decoding one block in a fresh process, import aside."""
    code = (
        "import time, numpy as np, refquant as rq\n"
        f"w = np.linspace(-1, 1, {fmt.block_size}, dtype=np.float32)\n"
        "begin = time.process_time()\n"
        f"rq.quantize(w, {fmt.name!r}, imatrix={'w * w' if fmt.needs_imatrix else 'None'}).dequantize()\n"
        "print((time.process_time() - begin) * 1000)\n"
    )
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2))


def table(results: list[dict]) -> Table:
    """refquant's million weights a second, and how many times each peer's that is."""
    shown = Table(box=MARKDOWN)
    shown.add_column("type")
    shown.add_column("action")
    for name in ("refquant", *(f"/ {peer}" for peer in PEERS), "first use, ms"):
        shown.add_column(name, justify="right")
    for before, result in zip([None, *results], results, strict=False):
        rates = result["rates"]
        ratios = [figure(rates["refquant"] / rates[peer] if peer in rates else None) for peer in PEERS]
        begins = before is None or before["type"] != result["type"]
        name, first = (result["type"], f"{result['first_use_ms']:.0f}") if begins else ("", "")
        shown.add_row(name, result["action"], figure(rates["refquant"]), *ratios, first)
    return shown


def figure(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return ""
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(value))))}f}"


if __name__ == "__main__":
    raise SystemExit(main())
