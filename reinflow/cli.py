"""The command line of every script: one frozen dataclass becomes flat flags, and a user's mistake becomes one sentence.

    run_script(main, Config, presets={"guide": Config(...)})

A config composes smaller ones as `env: Flat[EnvConfig]`: nested and typed in code, `--env_id` on the command line.
"""

from __future__ import annotations

import dataclasses
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
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from reinflow.compatibility import completed
from reinflow.errors import UserError

__all__ = ["Flat", "as_flags", "flat_fields", "parse", "run_script", "with_flags"]

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
    notice: Callable[[C], str | None] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse `argv` (default: the process's own) and call `main`.

    `presets` maps a name to a whole config or to the flags that differ, `{"num_envs": 256}`; `--preset NAME` replaces
    the defaults and `--resume DIR` takes those of that run; every other flag still overrides them. A config that comes
    from neither may deserve a line to the user, which `notice` makes.
    Exits 2 with `error: ...` on a mistake of the user, 130 on Ctrl-C, 143 on SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with quiet_when_unread():
        try:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, leave)
            config = parse(config_type, arguments, presets=presets or {}, description=config_type.__doc__)
            if notice and not any(split_option(name, arguments)[0] for name in ("preset", "resume")):
                announce(notice(config))
            main(config)
        except UserError as error:
            fail(str(error), USER_ERROR)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)


def announce(line: str | None) -> None:
    """Print a line in one of the processes that torchrun starts."""
    if line and os.environ.get("RANK", "0") == "0":
        print(f"note: {line}", flush=True)


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
    description: str | None = None,
) -> C:
    """The config that `arguments` describe; tyro prints the reason and exits 2 where they don't parse."""
    check_unique_flags(config_type)
    presets = presets or {}
    arguments = open_switches_answered(config_type, arguments)
    name, rest = split_option("preset", arguments) if presets else (None, arguments)
    resume = split_option("resume", arguments)[0] if has_flag(config_type, "resume") else None
    options: dict[str, Any] = {"args": rest, "use_underscores": True, "description": description}
    if presets:
        configs = {key: resolve_preset(config_type, preset) for key, preset in presets.items()}
        options["description"] = f"{description or ''}\n\n{describe_presets(config_type(), configs)}"
        if name is not None and name not in configs:
            raise UserError(f"--preset {name} is unknown: choose one of {', '.join(configs)}")
        if name is not None:
            options["default"] = configs[name]
    if resume is not None:
        if name is not None:
            raise UserError("--resume takes the flags of the run it continues: leave --preset out")
        options["default"] = saved_config(config_type, Path(resume))
    return tyro.cli(config_type, **options)


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
        elif argument == f"--{option}":
            pending = True
        elif argument.startswith(f"--{option}="):
            value = argument.removeprefix(f"--{option}=")
        else:
            rest.append(argument)
    if pending:
        raise UserError(f"--{option} needs a value")
    return value, rest


def saved_config(config_type: type[C], run_dir: Path) -> C:
    """The config that a run's config.json holds; UserError where that isn't one of this script."""
    try:
        saved = json.loads((run_dir / "config.json").read_text())["flags"]
        defaults = dict(flat_fields(config_type()))
        saved = completed(saved, defaults)
        flags = {name: tuple(value) if isinstance(defaults[name], tuple) else value for name, value in saved.items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--resume {run_dir} is not a run of this script and version: check its config.json") from None
    return with_flags(config_type(), flags)


def resolve_preset(config_type: type[C], preset: C | Mapping[str, Any]) -> C:
    return with_flags(config_type(), preset) if isinstance(preset, Mapping) else preset


def with_flags(config: C, flags: Mapping[str, Any]) -> C:
    """A copy of a nested config with some of its flat flags set.

    Raises ValueError for a flag that doesn't exist.
    """
    known = {name for name, _ in flat_fields(config)}
    if unknown := set(flags) - known:
        raise ValueError(f"{type(config).__name__} has no flag {', '.join(sorted(unknown))}")
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, config)):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner = {name for name, _ in flat_fields(value)} & set(flags)
            if inner:
                changes[field.name] = with_flags(value, {name: flags[name] for name in inner})
        elif field.name in flags:
            changes[field.name] = flags[field.name]
    return dataclasses.replace(cast(Any, config), **changes)


def flat_fields(config: Any) -> Iterator[tuple[str, Any]]:
    """Every flag of a nested config with its value, in the order of `--help`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat_fields(value)
        else:
            yield field.name, value


def as_flags(config: Any, base: Any) -> list[str]:
    """The command-line words that turn `base` into `config`."""
    pairs = zip(flat_fields(config), flat_fields(base), strict=True)
    return as_words({name: value for (name, value), (_, old) in pairs if value != old})


def as_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags by name as command-line words."""
    words: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, (tuple, list)):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words


def describe_presets(base: Any, presets: Mapping[str, Any]) -> str:
    """The paragraph of `--help` that shows what each preset holds."""
    lines = ["--preset NAME sets the flags below; flags given besides it win."]
    lines += [f"{name}: {shlex.join(as_flags(config, base)) or '(the defaults)'}" for name, config in presets.items()]
    return "\n\n".join(lines)


def check_unique_flags(config_type: type) -> None:
    """Raise ValueError where two nested configs define the same flag: one would hide the other."""
    owners: dict[str, str] = {"preset": "run_script"}
    for name, owner, _ in flag_owners(config_type):
        if name in owners:
            raise ValueError(f"--{name} is defined by both {owners[name]} and {owner}: rename one of the two fields")
        owners[name] = owner


def has_flag(config_type: type, flag: str) -> bool:
    return any(name == flag for name, *_ in flag_owners(config_type))


def flag_owners(config_type: type) -> Iterator[tuple[str, str, Any]]:
    """Every flag with the config that has it and its type."""
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        if not field.init:
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flag_owners(hints[field.name])
        else:
            yield field.name, config_type.__name__, hints[field.name]
