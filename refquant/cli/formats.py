"""`refquant formats`: the formats, their options, and what a scheme costs before anything is quantized."""

import argparse

EPILOG = """\
A scheme is a format's name and its options joined by '-': int4-g128-asym, int8-row, nf4-b64-dq.

examples:
  refquant formats                 every format, its options and nominal bits per weight
  refquant formats int4-g128-asym  what one scheme stores
  refquant formats --json
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "formats",
        help="list formats, or explain one scheme",
        description="List every format, or explain one scheme.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scheme", nargs="*", metavar="SCHEME", help="schemes to explain (default: every format)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from refquant.cli.console import print_json, print_table
    from refquant.formats.registry import formats, get_format

    described = [get_format(scheme) for scheme in args.scheme or formats()]
    rows = [
        {
            "scheme": str(fmt),
            "name": fmt.name,
            "bits_per_weight": fmt.bits_per_weight,
            "block_size": fmt.block_size,
            "parts": list(fmt.parts),
            "options": [option.text for option in fmt.options],
        }
        for fmt in described
    ]
    if args.json:
        print_json(rows)
        return 0
    print_table(
        ["scheme", ">bits/weight", ">block", "stored parts", "options"],
        [
            [
                str(fmt),
                f"{fmt.bits_per_weight:.4g}",
                str(fmt.block_size or "—"),
                ", ".join(fmt.parts),
                " ".join(option.text for option in fmt.options) or "—",
            ]
            for fmt in described
        ],
        caption="bits/weight: in the limit of a large tensor. In options, # stands for a number: g128, b64.",
    )
    return 0
