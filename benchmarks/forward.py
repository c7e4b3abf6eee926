"""Sliding-window perplexity in tokens a second: refquant against torch float32, in turns, on the same windows.

    python benchmarks/forward.py MODEL TEXT [--tokens 8192] [--window 1024] [--stride 512] [--threads 2] [--rounds 3]

MODEL is a Hugging Face folder of a Llama; `python -m tests.peers.smollm2` makes SmolLM2's and prints where it is.
torch runs transformers' LlamaForCausalLM with scaled dot-product attention in inference mode, in two ways: `torch`
computes logits and log-softmax of the scored tokens alone; `torch-guide` does what transformers' guide to perplexity
does, the model called with labels that leave the context out, which computes them for every token. All are warmed up;
the best round of each counts, and the median is printed.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("text", type=Path, help="text file, tokenized as a whole without BOS")
    parser.add_argument("--tokens", type=int, default=8192, help="of the text's first tokens (default: 8192)")
    parser.add_argument("--window", type=int, default=1024, help="tokens in a window (default: 1024)")
    parser.add_argument("--stride", type=int, default=512, help="tokens between windows (default: 512)")
    parser.add_argument("--threads", type=int, default=2, help="for both (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each (default: 3)")
    parser.add_argument("--batch", type=int, default=1, help="torch's windows in a batch (default: 1, its fastest)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read when the libraries load, which the imports below do

    import numpy as np
    import torch
    import transformers

    import refquant as rq

    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    model = rq.load_model(args.model)
    assert model.tokenizer is not None
    ids = np.asarray(model.tokenizer.encode(args.text.read_text(encoding="utf-8")))[: args.tokens]
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    def refquant_perplexity() -> float:
        return rq.perplexity(model, ids, window=args.window, stride=args.stride, bos="never").perplexity

    def torch_perplexity(nll: Callable[..., float]) -> float:
        with torch.inference_mode():
            return math.exp(nll(peer, torch.tensor(ids), args.window, args.stride, args.batch) / (len(ids) - 1))

    runs = {
        "refquant": refquant_perplexity,
        "torch": lambda: torch_perplexity(nll_of_scored_tokens),
        "torch-guide": lambda: torch_perplexity(nll_as_in_the_guide),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    perplexity = {}
    for round_ in range(args.rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            perplexity[name] = run()
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
            print(f"round {round_}: {name} {time.perf_counter() - begin:.2f} s", file=sys.stderr)
    rates = {name: (len(ids) - 1) / min(taken) for name, taken in seconds.items()}
    medians = {name: (len(ids) - 1) / statistics.median(taken) for name, taken in seconds.items()}
    ratios = {name: rates["refquant"] / rates[name] for name in runs if name != "refquant"}
    if args.json:
        print(json.dumps({"tokens_per_second": rates, "median": medians, "perplexity": perplexity, "ratio": ratios}))
    else:
        for name in runs:
            rate = f"{rates[name]:7.1f} scored tokens/s (median {medians[name]:.1f})"
            print(f"{name:12}{rate}, perplexity {perplexity[name]:.4f}")
        print(", ".join(f"{ratio:.2f} times {name}" for name, ratio in ratios.items()))
    return 0


def windows_of(n_tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Begin, first scored token, and end of every window."""
    windows = [(0, 1, min(window, n_tokens))]
    while (end := windows[-1][2]) < n_tokens:
        begin = windows[-1][0] + stride
        windows.append((begin, end, min(begin + window, n_tokens)))
    return windows


def nll_as_in_the_guide(peer, ids, window: int, stride: int, batch: int) -> float:
    """Total negative log-likelihood from the model's own loss, with the context's labels masked."""
    total = 0.0
    for begin, first, end in windows_of(len(ids), window, stride):
        labels = ids[None, begin:end].clone()
        labels[:, : first - begin] = -100
        total += peer(ids[None, begin:end], labels=labels, use_cache=False).loss.item() * (end - first)
    return total


def nll_of_scored_tokens(peer, ids, window: int, stride: int, batch: int) -> float:
    """Total negative log-likelihood of every token but the first, each scored once."""
    import torch

    windows = windows_of(len(ids), window, stride)
    total, done = 0.0, 0
    while done < len(windows):
        begin, first, end = windows[done]
        same = [w for w in windows[done : done + batch] if (w[1] - w[0], w[2] - w[0]) == (first - begin, end - begin)]
        tokens = torch.stack([ids[b : e - 1] for b, _, e in same])
        hidden = peer.model(tokens, use_cache=False).last_hidden_state[:, first - begin - 1 :]
        for row, (_, f, e) in zip(hidden, same, strict=True):
            logits = peer.lm_head(row)
            total += torch.nn.functional.cross_entropy(logits, ids[f:e], reduction="none").double().sum().item()
        done += len(same)
    return total


if __name__ == "__main__":
    raise SystemExit(main())
