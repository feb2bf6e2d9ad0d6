"""A nested config as flat flags: reading them, setting some, and narrowing its type to what was chosen by name.

A config composes smaller ones as `env: Flat[EnvConfig]`: nested and typed in code, `--env_id` on the command line.
The options of a chosen thing (`reinflow.registry.options_of`) are flags only while it is chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast, get_type_hints

from tyro.conf import OmitArgPrefixes as Flat

from reinflow.errors import UserError
from reinflow.registry import Registry, choices

C = TypeVar("C")

NARROWED = "__narrowed_from__"


def flat_fields(config: Any) -> Iterator[tuple[str, Any]]:
    """Every flag of a nested config with its value, in the order of `--help`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat_fields(value)
        else:
            yield field.name, value


def with_flags(config: C, flags: Mapping[str, Any]) -> C:
    """A copy of a nested config with some of its flat flags set; another choice starts from its own defaults.

    Raises ValueError for a flag that doesn't exist, UserError for a choice that doesn't.
    """
    changed = set_flags(config, flags)
    if unknown := set(flags) - {name for name, _ in flat_fields(changed)}:
        raise ValueError(f"{type(config).__name__} has no flag {', '.join(sorted(unknown))}")
    return changed


def set_flags(config: C, flags: Mapping[str, Any]) -> C:
    """`with_flags` that leaves out what the config doesn't have."""
    followed = dict(choices(config))
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, config)):
        value = getattr(config, field.name)
        if field.name in followed:
            value = options_after(config, field.name, followed[field.name], flags)
        if dataclasses.is_dataclass(value):
            changes[field.name] = set_flags(value, flags)
        elif field.name in flags:
            changes[field.name] = flags[field.name]
    return dataclasses.replace(cast(Any, config), **changes)


def options_after(config: Any, field: str, registry: Registry[Any], flags: Mapping[str, Any]) -> Any:
    """The options of a choice, new ones where `flags` choose another entry."""
    chosen = flags.get(registry.flag, getattr(config, registry.flag))
    return getattr(config, field) if chosen == getattr(config, registry.flag) else registry[chosen].config()


def as_flags(config: Any, base: Any) -> list[str]:
    """The command-line words that turn `base` into `config`."""
    chosen = {registry.flag: name for registry, name in chosen_names(config)}
    before = dict(flat_fields(set_flags(base, chosen))) | {name: dict(flat_fields(base))[name] for name in chosen}
    return as_words({name: value for name, value in flat_fields(config) if value != before[name]})


def defaults_of(config: Any) -> dict[str, Any]:
    """Flags of a config of the same type and choices, at their defaults."""
    return dict(flat_fields(set_flags(type(config)(), {r.flag: name for r, name in chosen_names(config)})))


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


def chosen_names(config: Any) -> Iterator[tuple[Registry[Any], str]]:
    """Every registry that a nested config chooses from, and what it chose."""
    for _, registry in choices(config):
        yield registry, getattr(config, registry.flag)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from chosen_names(value)


def refuse_options_of_others(config: Any, words: Sequence[str]) -> None:
    """UserError for a flag among `words` that exists only under another choice, with its owner's name."""
    known = {name for name, _ in flat_fields(config)}
    for word in words:
        option = word.removeprefix("--").split("=")[0].replace("-", "_")
        if not word.startswith("--") or option in known or option.removeprefix("no_") in known:
            continue
        for registry, owners in owners_of(config, option) or owners_of(config, option.removeprefix("no_")):
            chosen = {r.flag: name for r, name in chosen_names(config)}[registry.flag]
            raise UserError(
                f"--{option} belongs to --{registry.flag} {' or '.join(owners)} and this is --{registry.flag} "
                f"{chosen}: leave it out, or choose {'that' if len(owners) == 1 else 'one of those'}"
            )


def owners_of(config: Any, option: str) -> list[tuple[Registry[Any], list[str]]]:
    """The registries, and their entries, that have such an option, chosen or not."""
    found = [(registry, registry.owners(option)) for registry, _ in chosen_names(config)]
    return [(registry, owners) for registry, owners in found if owners]


def narrowed(config: Any) -> Any:
    """The same values in a dataclass whose type knows the choices: what a parser shows and takes.

    Its option fields have the types of the chosen configs, and the names that can be chosen are spelt out.
    """
    cls = type(config)
    registries = dict(choices(config))
    hints = get_type_hints(cls, include_extras=True)
    retyped: list[tuple[str, Any, Any]] = []
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = values[field.name] = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner = values[field.name] = narrowed(value)
            hint: Any = Flat[Any] if field.name in registries else hints[field.name]  # type: ignore[misc]
            marks = (type(inner), *getattr(hint, "__metadata__", ()))
            kind: Any = cast(Any, Annotated)[marks] if len(marks) > 1 else type(inner)
            retyped.append((field.name, kind, dataclasses.field(default_factory=type(inner))))
    for registry in {registry.flag: registry for registry in registries.values()}.values():
        names = Literal[tuple(registry)]  # type: ignore[valid-type]
        retyped.append((registry.flag, names, dataclasses.field(default=values[registry.flag])))
    if not retyped:
        return config
    space = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__post_init__": lambda self: None,
        NARROWED: cls,
    }
    made = dataclasses.make_dataclass(cls.__name__, retyped, bases=(cls,), frozen=True, namespace=space)
    return made(**values)


def widened(config: Any) -> Any:
    """Back from `narrowed` types to the original ones, which check what they are given."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    original = getattr(type(config), NARROWED, type(config))
    return original(**{name: widened(v) if dataclasses.is_dataclass(v) else v for name, v in values.items()})


def check_unique_flags(config_type: type) -> None:
    """Raise ValueError where two nested configs define the same flag: one would hide the other."""
    owners: dict[str, str] = {"preset": "run_script", "recipe": "run_script"}
    for name, owner, _ in flag_owners(config_type):
        if name in owners:
            raise ValueError(f"--{name} is defined by both {owners[name]} and {owner}: rename one of the two fields")
        owners[name] = owner


def flag_owners(config_type: type) -> Iterator[tuple[str, str, Any]]:
    """Every flag of a nested config type with the dataclass that defines it and its type."""
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        if not field.init:
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flag_owners(hints[field.name])
        else:
            yield field.name, config_type.__name__, hints[field.name]
