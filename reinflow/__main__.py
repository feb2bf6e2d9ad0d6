"""One command for everything: `reinflow clone --env_id PickCube-v1` is `python train_shortcut_flow.py ...`.

Each word runs a script of the project or a module of the package, in this process, with the arguments that follow.
"""

from __future__ import annotations

import difflib
import runpy
import sys

from reinflow import __version__
from reinflow.commands import MODULES, SCRIPTS, script

USAGE = """usage: reinflow COMMAND [arguments]; reinflow COMMAND --help tells a command's arguments

{commands}

reinflow --version prints {version}
"""


def main() -> None:
    """Run the command that `sys.argv` names; exit code 2 with a sentence for one that there isn't."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(usage(), end="")
    elif name == "--version":
        print(__version__)
    elif name in SCRIPTS:
        path = str(script(SCRIPTS[name].target))
        sys.argv = [path, *rest]
        runpy.run_path(path, run_name="__main__")
    elif name in MODULES:
        sys.argv = [name, *rest]
        runpy.run_module(MODULES[name].target, run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, [*SCRIPTS, *MODULES], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*SCRIPTS, *MODULES])}"
        print(f"error: reinflow has no command {name}: {hint}", file=sys.stderr)
        raise SystemExit(2)


def usage() -> str:
    """What `--help` prints."""
    lines = [f"  {name:<12}{command.does}" for name, command in {**SCRIPTS, **MODULES}.items()]
    return USAGE.format(commands="\n".join(lines), version=__version__)


if __name__ == "__main__":
    main()
