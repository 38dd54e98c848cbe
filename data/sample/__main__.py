"""Render the embedded data set: `python -m data.sample [--out DIR] [--seed N]` prints the folder."""

import argparse
from pathlib import Path

from data.sample import CACHE_VARIABLE, sample_root


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.sample", description="Render the embedded data set.")
    parser.add_argument("--out", type=Path, help=f"cache folder (default: ${CACHE_VARIABLE}, else the user's cache)")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another data set (default: 0)")
    arguments = parser.parse_args()
    print(sample_root(arguments.out, arguments.seed))


if __name__ == "__main__":
    main()
