"""`python -m benchmarks [NAME ...]`: run all benchmarks (or those named), print one table, add to results.csv."""

import importlib
import pkgutil
import sys

import benchmarks
from benchmarks._bench import machine, table


def names() -> list[str]:
    """Every benchmark: the public modules here."""
    return [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]


def main(chosen: list[str]) -> int:
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    rows = []
    for name in chosen or names():
        print(f"--- {name}", flush=True)
        rows += importlib.import_module(f"benchmarks.{name}").main()
    print(f"\n{machine()}\n{table(rows).to_string(index=False)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
