"""Run one benchmark by name; without a name, list them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import benchmarks
from reinflow.cli import USER_ERROR, quiet_when_unread


def main() -> int:
    """Run the benchmark named first with the flags after it; without one list them all. Returns the exit code."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print("usage: python -m benchmarks NAME [flags], NAME is one of", file=sys.stderr)
        for name in names:
            print(f"  {name:12} {purpose(name)}", file=sys.stderr)
        return USER_ERROR
    name = sys.argv.pop(1)
    sys.argv[0] = f"python -m benchmarks {name}"
    with quiet_when_unread():
        return importlib.import_module(f"benchmarks.{name}").main() or 0


def purpose(name: str) -> str:
    """The first sentence of a benchmark, without importing it."""
    tree = ast.parse((Path(benchmarks.__path__[0]) / f"{name}.py").read_text())
    return (ast.get_docstring(tree) or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
