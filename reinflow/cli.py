"""The command line of every script: one frozen dataclass becomes flat flags, and a user's mistake becomes one sentence.

    run_script(main, Config, presets={"guide": Config(...)})

A config composes smaller ones as `env: Flat[EnvConfig]`: nested and typed in code, `--env_id` on the command line.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from reinflow.errors import UserError
from reinflow.flags import (
    as_flags,
    as_words,
    check_unique_flags,
    chosen_names,
    flag_owners,
    flat_fields,
    narrowed,
    owners_of,
    refuse_options_of_others,
    set_flags,
    widened,
    with_flags,
)
from reinflow.run.compatibility import completed

__all__ = ["Flat", "as_flags", "as_words", "flat_fields", "parse", "run_script", "with_flags"]

C = TypeVar("C")

USER_ERROR, INTERRUPTED, NO_READER = 2, 130, 141
REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ENOTDIR,
}  # fmt: skip
"""what a disk says that is full, read-only, forbidden or broken, and what a lost terminal says"""


def run_script(
    main: Callable[[C], None],
    config_type: type[C],
    *,
    presets: Mapping[str, C | Mapping[str, Any]] | None = None,
    recipes: Callable[[str], Mapping[str, Any]] | None = None,
    notice: Callable[[C], str | None] | None = None,
    loads: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse `argv` (default: the process's own) and call `main`.

    `presets` maps a name to a whole config or to the flags that differ, `{"num_envs": 256}`; `--preset NAME` replaces
    the defaults, `--recipe NAME` sets what `recipes` gives for that name on top, and `--resume DIR` takes those of that
    run; every other flag still overrides them. A config that comes from none of them may deserve a line to the user,
    which `notice` makes. `loads` is what takes seconds before `main` has anything to say: it is printed at once.
    Exits 2 with `error: ...` on a mistake of the user, 130 on Ctrl-C, 143 on SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with quiet_when_unread():
        try:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, leave)
            description = config_type.__doc__
            config = parse(config_type, arguments, presets=presets or {}, recipes=recipes, description=description)
            if notice and not any(split_option(name, arguments)[0] for name in ("preset", "recipe", "resume")):
                line = notice(config)
                announce(line and f"note: {line}")
            announce(loads and f"{str(config_type.__doc__).splitlines()[0].rstrip('.')}: loading {loads}")
            main(config)
        except UserError as error:
            fail(str(error), USER_ERROR)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)


def announce(line: str | None) -> None:
    """Print a line in one of the processes that torchrun starts."""
    if line and os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Ends with 141, as a shell has it, and no traceback where whoever read the output has left: `| head`.

    Other files and outputs that can't be written end in a sentence.
    """
    if sys.stdout is None:  # whoever started this process closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        try:
            yield
        except SystemExit as leaving:
            with suppress(OSError) if leaving.code else nullcontext():
                sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise  # another pipe broke
        raise SystemExit(NO_READER) from None
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        what = error.filename or "the output"
        fail(f"{what} can't be written or read ({error.strerror}): free space or fix permissions", USER_ERROR)
    finally:
        drop_unwritable()


def drop_unwritable() -> None:
    """Drop what the output doesn't take: it would be tried again, and be an error when the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave(number: int, frame: object) -> NoReturn:
    """A script that is told to end cleans up what it has half written; a `Run` also saves."""
    raise SystemExit(128 + number)


def fail(sentence: str, code: int) -> NoReturn:
    with suppress(OSError):  # a terminal that is gone
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def parse(
    config_type: type[C],
    arguments: Sequence[str],
    *,
    presets: Mapping[str, C | Mapping[str, Any]] | None = None,
    recipes: Callable[[str], Mapping[str, Any]] | None = None,
    description: str | None = None,
) -> C:
    """The config that `arguments` describe; tyro prints the reason and exits 2 where they don't parse.

    A config whose fields must be given has nothing to choose by name, no presets and no run to resume.
    """
    if any(field.default is MISSING and field.default_factory is MISSING for field in fields(config_type)):  # type: ignore[arg-type]
        return tyro.cli(config_type, args=arguments, use_underscores=True, description=description)
    base = config_type()
    configs = {key: resolve_preset(base, preset) for key, preset in (presets or {}).items()}
    name, rest = split_option("preset", arguments) if configs else (None, list(arguments))
    recipe, rest = split_option("recipe", rest) if recipes else (None, rest)
    resume = split_option("resume", arguments)[0] if "resume" in dict(flat_fields(base)) else None
    if configs:
        description = f"{description or ''}\n\n{describe_presets(base, configs)}"
    if recipes:
        description = f"{description or ''}\n\n--recipe NAME sets the flags of docs/recipes.md; others given win."
    if resume is not None and (name is not None or recipe is not None):
        raise UserError("--resume takes the flags of the run it continues: leave --preset and --recipe out")
    if name is not None and name not in configs:
        raise UserError(f"--preset {name} is unknown: choose one of {', '.join(configs)}")
    start = saved_config(base, Path(resume)) if resume is not None else configs[name] if name is not None else base
    if recipes and recipe is not None:
        start = with_flags(start, recipes(recipe))
    start = with_choices(start, rest)
    refuse_options_of_others(start, rest)
    shown = narrowed(start)
    check_unique_flags(type(shown))
    words = open_switches_answered(type(shown), rest)
    return widened(tyro.cli(type(shown), default=shown, args=words, use_underscores=True, description=description))


def with_choices(config: C, arguments: Sequence[str]) -> C:
    """`config` after the choices that are among the arguments: they decide which other flags there are."""
    while True:
        given = {registry.flag: split_option(registry.flag, arguments)[0] for registry, _ in chosen_names(config)}
        changed = set_flags(config, {flag: name for flag, name in given.items() if name is not None})
        if changed == config:
            return changed
        config = changed


def open_switches_answered(config_type: type, arguments: Sequence[str]) -> list[str]:
    """`--x` as `--x True` and `--no-x` as `--x False` where x may also be None, which tyro wants spelt out."""
    hints = {name: hint for name, _, hint in flag_owners(config_type)}
    switches = {name for name, hint in hints.items() if hint == (bool | None)}
    words: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name = argument[2:].replace("-", "_") if argument.startswith("--") else ""
        if name in switches and following not in ("True", "False", "None"):
            words += [f"--{name}", "True"]
        elif name.removeprefix("no_") in switches and name not in switches:
            words += [f"--{name.removeprefix('no_')}", "False"]
        else:
            words.append(argument)
    return words


def split_option(option: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take `--option VALUE` or `--option=VALUE` out of the arguments; the last one counts."""
    value, rest, pending = None, [], False
    for argument in arguments:
        if pending:
            value, pending = argument, False
        elif argument.replace("-", "_") == f"__{option}":
            pending = True
        elif argument.split("=")[0].replace("-", "_") == f"__{option}":
            value = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    if pending:
        raise UserError(f"--{option} needs a value")
    return value, rest


def saved_config(base: C, run_dir: Path) -> C:
    """The config that a run's config.json holds; UserError where that isn't one of this script.

    Earlier versions also saved the options of what wasn't chosen.
    """
    try:
        saved = json.loads((run_dir / "config.json").read_text())["flags"]
        choices = {r.flag: saved[r.flag] for r, _ in chosen_names(base) if r.flag in saved}
        defaults = dict(flat_fields(set_flags(base, choices)))
        saved = completed(saved, defaults)
        others = {name for name in saved if name not in defaults and owners_of(base, name)}
        flags = {
            name: tuple(value) if isinstance(defaults[name], tuple) else value
            for name, value in saved.items()
            if name not in others
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--resume {run_dir} is not a run of this script and version: check its config.json") from None
    return with_flags(base, flags)


def resolve_preset(base: C, preset: C | Mapping[str, Any]) -> C:
    return with_flags(base, preset) if isinstance(preset, Mapping) else preset


def describe_presets(base: Any, presets: Mapping[str, Any]) -> str:
    """The paragraph of `--help` that shows what each preset holds."""
    lines = ["--preset NAME sets the flags below; flags given besides it win."]
    lines += [f"{name}: {shlex.join(as_flags(config, base)) or '(the defaults)'}" for name, config in presets.items()]
    return "\n\n".join(lines)
