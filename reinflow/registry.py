"""Things that are chosen by name: policy families, networks, encoders, algorithms, env suites, data formats.

    FAMILIES = Registry("policy family", flag="family")
    FAMILIES.add("shortcut", Entry(Shortcut, ShortcutConfig))

Adding one is a file and such a line. Its options exist on the command line only where its name is chosen (`Choosing`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Generic, TypeVar, cast

from reinflow.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class NoOptions:
    """Of what has nothing to choose."""


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One thing with a name."""

    build: Callable[..., T]
    """makes it; what the arguments are is the registry's own agreement"""
    config: type = NoOptions
    """frozen dataclass of its options, each with a default; it is stored wherever the choice is"""
    needs: tuple[type | str, ...] = ()
    """capabilities (`reinflow.types`), or their names, that it asks of a policy"""

    @property
    def made(self) -> type:
        """What `build` makes, where it is a class or a later one; else what `build` is."""
        place = getattr(self.build, "place", None)
        return cast(type, named(place) if place else self.build)


def later(place: str) -> Callable[..., Any]:
    """A `build` that imports `module:name` when it is first called, so that a command line doesn't wait for torch."""

    def build(*args: Any, **kwargs: Any) -> Any:
        return named(place)(*args, **kwargs)

    build.place = place  # type: ignore[attr-defined]
    return build


def named(place: str) -> Any:
    """What a `module:name` stands for."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


class Registry(Mapping[str, Entry[T]]):
    """Entries by name. Looking up another name is a UserError that lists those there are."""

    def __init__(self, what: str, flag: str, entries: Mapping[str, Entry[T]] | None = None):
        """`what` is how a sentence calls such a thing, `flag` the option that chooses one."""
        self.what = what
        self.flag = flag
        self._entries: dict[str, Entry[T]] = dict(entries or {})

    def __getitem__(self, name: str) -> Entry[T]:
        if name not in self._entries:
            raise UserError(f"there is no {self.what} {name!r}: --{self.flag} takes one of {', '.join(self)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, entry: Entry[T]) -> None:
        """ValueError where the name is taken."""
        if name in self._entries:
            raise ValueError(f"there is a {self.what} {name!r} already")
        self._entries[name] = entry

    @contextmanager
    def having(self, name: str, entry: Entry[T]) -> Iterator[None]:
        """`add` for the length of a block."""
        self.add(name, entry)
        try:
            yield
        finally:
            del self._entries[name]

    def owners(self, option: str) -> list[str]:
        """Names of the entries that have such an option."""
        return [name for name, entry in self.items() if option in flags_of(entry.config)]


class Facet(Registry[T]):
    """The same names with other options: what else a choice decides, as a registry of its own."""

    def __init__(self, registry: Registry[T], config_of: Callable[[Any], type]):
        """`config_of` gives the dataclass of these options of an entry."""
        super().__init__(registry.what, registry.flag)
        self._registry = registry
        self._config_of = config_of

    def __getitem__(self, name: str) -> Entry[T]:
        entry = self._registry[name]
        return Entry(entry.build, self._config_of(entry))

    def __contains__(self, name: object) -> bool:
        return name in self._registry

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    def add(self, name: str, entry: Entry[T]) -> None:
        """TypeError: entries are added to the registry itself."""
        raise TypeError(f"add {name!r} to the registry that this is a facet of")


def flags_of(config: type) -> set[str]:
    """Names of the flags of a dataclass and of those nested in it, which its defaults show."""
    return set(flat_names(config()))


def flat_names(config: Any) -> Iterator[str]:
    """As flags: the fields that hold no dataclass, at any depth."""
    for one in fields(config):
        value = getattr(config, one.name)
        if is_dataclass(value):
            yield from flat_names(value)
        else:
            yield one.name


def options_of(registry: Registry[Any]) -> Any:
    """A field of a `Choosing` config: the options of what its field named `registry.flag` chooses."""
    return field(default=None, metadata={"registry": registry})


class Choosing:
    """Base of a frozen dataclass with `options_of` fields: each holds the config of the chosen entry."""

    def __post_init__(self) -> None:
        for name, registry in choices(self):
            expected = registry[getattr(self, registry.flag)].config
            options = getattr(self, name)
            if options is None:
                object.__setattr__(self, name, expected())
            elif not isinstance(options, expected):
                chosen = getattr(self, registry.flag)
                raise TypeError(f"{name} of {chosen!r} must be {expected.__name__}, got {type(options).__name__}")


def choices(config: Any) -> list[tuple[str, Registry[Any]]]:
    """The option fields of a dataclass or an instance of one, with the registries that they follow."""
    return [(f.name, f.metadata["registry"]) for f in fields(cast(Any, config)) if "registry" in f.metadata]
