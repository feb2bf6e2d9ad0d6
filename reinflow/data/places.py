"""Where named demonstrations lie on this machine: paths, patterns, Minari's names, files of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from reinflow.errors import UserError

HUB = "hf://"
HUB_FOLDER = Path("demos") / "hub"
"""what was fetched from the hub, or is put there by hand"""


def located(names: Iterable[str | Path]) -> list[Path]:
    """The paths that names stand for, in their order; UserError for a pattern that nothing fits, or what is elsewhere.

    A path that doesn't exist comes back as it is.
    """
    return [path for name in names for path in places_of(str(name))]


def places_of(name: str) -> list[Path]:
    """The paths of one name, several where it is a pattern."""
    path = Path(name)
    if name.startswith(HUB):
        return [from_hub(name)]
    if path.exists():
        return [path]
    if any(sign in name for sign in "*?["):
        # descriptions belong to the files beside them
        if found := [Path(one) for one in sorted(glob(name, recursive=True)) if not one.endswith(".json")]:
            return found
        raise UserError(f"--demo_path {name} fits no file: check the folder and the pattern")
    if re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*-v\d+", name):
        return [minari_dataset(name)]
    return [path]


def minari_dataset(name: str) -> Path:
    """The folder of a dataset of Minari that was downloaded before."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    if (root / name).is_dir():
        return root / name
    raise UserError(
        f"there is no Minari dataset {name} in {root}: fetch it with `minari download {name}` where there is a network "
        "and copy its folder there"
    )


def from_hub(name: str, kind: str = "dataset") -> Path:
    """A file or folder of the Hugging Face hub, hf://owner/name/path: the copy below HUB_FOLDER, or a fresh one there.

    `kind` is that of the repository, `dataset` or `model`. UserError says where to put it by hand where the hub can't
    be reached.
    """
    owner, _, rest = name.removeprefix(HUB).partition("/")
    repo, _, inside = rest.partition("/")
    if not (owner and repo and inside):
        raise UserError(f"{name} names no file: write hf://owner/name/path/in/it")
    folder = HUB_FOLDER / owner / repo
    place = folder / inside
    if place.exists():
        return place
    advice = f"download it elsewhere and place it at {place}"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{name} needs huggingface_hub: pip install 'reinflow[hub]', or {advice}") from None
    beside = [str(Path(inside).with_suffix(".json")), str(Path(inside).with_name("normalization.npz"))]
    try:
        snapshot_download(
            f"{owner}/{repo}",
            repo_type=kind,
            allow_patterns=[inside, f"{inside}/**", *beside],
            local_dir=folder,
        )
    except Exception as error:  # its errors come from several libraries, and offline each version raises another
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        raise UserError(f"{name} can't be fetched ({type(error).__name__}: {reason}): {advice}") from None
    if not place.exists():
        raise UserError(f"{owner}/{repo} on the hub has no {inside}: check the name")
    return place
