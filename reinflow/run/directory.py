"""The directory of a run: taken by one process at a time, never clobbered by accident, described by its config.json."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from reinflow.cli import flat_fields
from reinflow.errors import UserError
from reinflow.run.compatibility import source_digest
from reinflow.runtime.files import SOURCES, plain, read_json, write_json

LOCK = ".lock"


class RunDir:
    """A directory that this process holds until `release`."""

    def __init__(self, path: Path, lock: IO[str]):
        self.path = path
        self._lock = lock

    @classmethod
    def take(cls, path: Path, resume: str | None, overwrite: bool) -> RunDir:
        """Make `path`, or take the existing directory `resume`; UserError if that is not possible."""
        if resume is not None:
            path = Path(resume)
            if not is_run(path):
                raise UserError(
                    f"--resume {resume} is not a run directory (it has no config.json of ours): check the path"
                )
            held = cls(path, lock(path))
        elif path.exists() or path.is_symlink():
            held = cls._replace(path, overwrite)
        else:
            held = cls._made(path, overwrite)
        try:
            for name in ("checkpoints", "videos"):
                (path / name).mkdir(exist_ok=True)
        except OSError:
            held.release(remove=resume is None)
            raise
        return held

    @classmethod
    def _made(cls, path: Path, overwrite: bool) -> RunDir:
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # by another process, just now
            return cls._replace(path, overwrite)
        try:
            return cls(path, lock(path))
        except (OSError, UserError):
            shutil.rmtree(path, ignore_errors=True)
            raise

    @classmethod
    def _replace(cls, path: Path, overwrite: bool) -> RunDir:
        if not overwrite:
            raise UserError(
                f"{path} exists: continue it with --resume {path}, choose another --exp_name, "
                "or replace it with --overwrite"
            )
        if path.is_symlink() or not is_run(path):
            raise UserError(
                f"{path} exists and is not a run of ours, so --overwrite leaves it alone: choose another --exp_name"
            )
        held = cls(path, lock(path))
        empty(path)
        return held

    def release(self, remove: bool = False) -> None:
        """Let go of the directory; `remove` deletes it, for a run that never began."""
        if remove:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def is_run(path: Path) -> bool:
    """Whether `path` holds a run: a config.json with the keys that `write_config` writes."""
    try:
        description = read_json(path / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and {"config", "flags", "argv", "versions"} <= description.keys()


def lock(path: Path) -> IO[str]:
    """Hold `path` for this process; the kernel lets go when the process ends, however it ends."""
    file = (path / LOCK).open("a")
    try:
        # lockf, not flock: forked simulator workers that outlive a killed trainer must not keep its lock
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise UserError(f"{path} can't be locked ({error.strerror}): put --runs_dir on a disk with locks") from None
        raise UserError(
            f"another process is training in {path}: wait for it, stop it, or choose another --exp_name"
        ) from None
    return file


def is_free(path: Path) -> bool:
    """Whether no process holds `path`."""
    if not path.exists():
        return True
    try:
        lock(path).close()
    except UserError:
        return False
    return True


def empty(path: Path) -> None:
    """Delete everything in a run's folder but its lock; links go, what they lead to stays."""
    for entry in path.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


class TextLog:
    """A log file whose lines may be lost when the disk takes none; counted in `lost`."""

    def __init__(self, path: Path):
        self._file = path.open("a", buffering=1)
        self.lost = 0

    def write(self, text: str) -> None:
        """Append the text, or count it as lost."""
        try:
            self._file.write(text)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        """Close the file; on a full disk the last lines are lost."""
        with suppress(OSError):  # what a full disk has left in the buffer
            self._file.close()


def describe_run(full_config: Any, seed: int, device: str) -> dict[str, Any]:
    """What config.json holds: config, flat flags, command, versions, code, device, the trackers' run id, machine."""
    return {
        "config": dataclasses.asdict(full_config),
        "flags": dict(flat_fields(full_config)),
        "seed": seed,
        "argv": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "source": source_digest(),
        "git_commit": git_commit(),
        "device": device,
        "tracker_id": secrets.token_hex(4),
        "host": platform.node(),
        "cpus": os.cpu_count(),
    }


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.json, which `is_run` has seen."""
    return read_json(path / "config.json")


def write_config(path: Path, description: dict[str, Any]) -> None:
    """Write config.json; on a resume the earlier descriptions stay, newest first, under `earlier`."""
    target, earlier = path / "config.json", []
    if target.exists():
        before = read_config(path)
        earlier = [{key: value for key, value in before.items() if key != "earlier"}, *before.get("earlier", [])]
    write_json(target, {**plain(description), "earlier": earlier})


def versions() -> dict[str, str | None]:
    """Installed versions of what decides a run's numbers, read without importing anything."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("reinflow", "torch", "numpy", "mani_skill", "sapien", "gymnasium"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Commit of the source tree, with `+` appended where tracked files differ from it; None outside a repository."""
    if not (SOURCES / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(SOURCES), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
