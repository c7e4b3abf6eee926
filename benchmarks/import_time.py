"""How long `import refquant` takes beside `import numpy`: fresh interpreters in turn, the medians and their ratio.

    python benchmarks/import_time.py [--runs 15] [--limit 1.5]

Exits with 1 when the ratio of the medians is above the limit.
"""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.5)
    args = parser.parse_args()
    statements = ("pass", "import numpy", "import refquant")
    for statement in statements:
        seconds(statement)  # warm the file cache
    times = [[seconds(statement) for statement in statements] for _ in range(args.runs)]
    empty, numpy, refquant = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = (refquant - empty) / (numpy - empty)
    print(f"interpreter {empty * 1e3:.1f} ms, import numpy +{(numpy - empty) * 1e3:.1f} ms, ", end="")
    print(f"import refquant +{(refquant - empty) * 1e3:.1f} ms: {ratio:.2f} times numpy (limit {args.limit})")
    return int(ratio > args.limit)


if __name__ == "__main__":
    sys.exit(main())
