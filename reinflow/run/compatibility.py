"""What a resumed run may not change, and the table that says what did.

A run goes on bit by bit only with the code, the libraries, the device and the flags that it started with. Length,
rhythm and logs may change (FREE); anything else needs `--allow_changes`, which gives up that promise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reinflow.errors import UserError
from reinflow.runtime.files import SOURCES

FREE = frozenset({
    "total_timesteps", "total_iters", "log_freq", "eval_freq", "save_freq",
    "keep_every", "track", "wandb_project_name", "wandb_entity", "capture_video", "num_video_envs",
    "runs_dir", "exp_name", "resume", "overwrite", "allow_changes", "num_threads", "num_workers",
})  # fmt: skip
"""flags that may change; a longer run follows the learning rate and noise of its new length"""

FLAGS_ADDED_LATER = {"initial_noise_scale": 1.0, "only_success": False, "tf32": True}
"""flags that a run may lack because it is older than they are, and whose default is not what it did without them"""

LEFT_OPEN = {"reward_mode"}
"""flags that an older run holds as None where its checkpoint or task decided; today's runs hold the decision"""

SEVERAL_NOW = frozenset({"demo_path"})
"""flags that took one value, or None, in older runs"""

Difference = tuple[str, str, str]
"""what, in the run, now"""


def source_digest() -> str:
    """Digest of all code that a run's numbers depend on."""
    digest = hashlib.sha256()
    for folder in ("nets", "reinflow"):
        for path in sorted((SOURCES / folder).rglob("*.py")):
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def changes(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Difference]:
    """Rows for two descriptions of a run (config.json) that differ in what decides its numbers.

    `defaults` are those of the flags that there are now. A flag that the run lacks is newer than it; one that only the
    run has belongs to something that isn't chosen any more, whose choice has a row of its own.
    """
    flags = dict(defaults) | {
        name: value for name, value in completed(before.get("flags", {}), defaults).items() if name in now["flags"]
    }
    flags |= {name: now["flags"][name] for name in LEFT_OPEN & flags.keys() if flags[name] is None}
    found = compared(flags, now["flags"], "--", FREE)
    found += compared(before.get("versions", {}), now["versions"], "version of ")
    return found + compared(before, {name: now[name] for name in ("source", "device")})


def completed(flags: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """A run's flags, with those of the `known` ones that came after it."""
    added = {name: value for name, value in FLAGS_ADDED_LATER.items() if name in known}
    return added | {name: several(value) if name in SEVERAL_NOW else value for name, value in flags.items()}


def several(value: Any) -> list[Any]:
    """The values of a flag that may be saved as one."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def compared(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "", free: frozenset[str] = frozenset()
) -> list[Difference]:
    """Rows for the keys of `now`, and with a prefix also for those that only `before` has."""
    names = [*now, *(name for name in before if prefix and name not in now)]
    rows = ((prefix + name, shown(before.get(name)), shown(now.get(name))) for name in names if name not in free)
    return [row for row in rows if row[1] != row[2]]


def shown(value: Any) -> str:
    """The same text for a value and for what JSON made of it."""
    return str(list(value) if isinstance(value, tuple) else value)


def refuse(run_dir: Path | str, differences: list[Difference], advice: str) -> None:
    """UserError with a table, if there are any."""
    if differences:
        raise UserError(f"{run_dir} can't go on as it was, {advice}:\n{table(differences)}")


def table(differences: list[Difference]) -> str:
    """The differences in aligned columns: what changed, its value in the run, its value now."""
    rows = [("", "in the run", "now"), *differences]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
