"""Pictures of demonstrations: held as bytes on the learner's device, or read from the file frame by frame.

They stay as they were recorded, rgb in uint8 and depth in int16 millimetres, until the encoder takes a minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from reinflow.data.hdf5 import opened, reading, refuse_impossible_size
from reinflow.errors import UserError
from reinflow.types import ImageSpec

DTYPES = {"rgb": (np.uint8, 3), "depth": (np.int16, 1)}
"""type and channels of a recorded picture"""


@dataclass(frozen=True)
class PictureFile:
    """Where the pictures of one trajectory lie."""

    path: Path
    group: str
    """the trajectory's name in the file"""
    spec: ImageSpec
    frames: int
    """how many of them there are, from the first one on"""

    def datasets(self, file: Any, name: str) -> list[Any]:
        """`rgb` or `depth` of each camera, (t y x c)."""
        return [file[f"{self.group}/obs/sensor_data/{camera}/{name}"] for camera in self.spec.cameras]

    @property
    def num_bytes(self) -> int:
        """Size of its pictures once uncompressed: 3 bytes a pixel for rgb, 2 for depth."""
        pixels = self.frames * len(self.spec.cameras) * self.spec.height * self.spec.width
        return pixels * (3 * self.spec.rgb + 2 * self.spec.depth)


def find_pictures(path: Path, group: Any, where: str, frames: int, size: int) -> PictureFile:
    """The pictures of a recorded trajectory in a file of `size` bytes, checked without reading them.

    UserError names what is missing, or of another size, number or type than the rest.
    """
    cameras = group.get("obs/sensor_data", {})
    names = [name for name in DTYPES if any(name in camera for camera in cameras.values())]
    if not names:
        raise UserError(f"{where} has no pictures: record them with collect_demos.py --obs_mode rgb")
    sizes = set()
    for camera, textures in cameras.items():
        for name in names:
            if name not in textures:
                raise UserError(f"{where}, camera {camera} has no {name} while others do: record the file again")
            shape, dtype = textures[name].shape, textures[name].dtype
            wanted, channels = DTYPES[name]
            if len(shape) != 4 or shape[0] < frames or shape[3] != channels or dtype != wanted:
                raise UserError(
                    f"{where}, {name} of {camera} is {dtype} {shape}, not {np.dtype(wanted)} "
                    f"({frames}, height, width, {channels}): record the file again"
                )
            refuse_impossible_size(textures[name], f"{where}, {name} of {camera}", size)
            sizes.add(shape[1:3])
    if len(sizes) > 1:
        raise UserError(f"{where} has pictures of several sizes {sorted(sizes)}: record all cameras in one")
    height, width = sizes.pop()
    spec = ImageSpec(tuple(cameras), height, width, rgb="rgb" in names, depth="depth" in names)
    return PictureFile(path, group.name.strip("/"), spec, frames)


class PictureStore(Protocol):
    """Frames of all trajectories, one after the other."""

    def gather(self, rows: Int[Tensor, "b o"]) -> dict[str, Tensor]:
        """`rgb` and `depth` of these frames, (b o v y x c) each, on the learner's device."""
        ...


def open_store(files: Sequence[PictureFile], max_gb: float, device: torch.device) -> PictureStore:
    """Hold up to `max_gb` of pictures in memory, stream more from their file."""
    total = sum(file.num_bytes for file in files) / 1e9
    if total <= max_gb:
        return HeldPictures(files, device)
    print(f"{total:.1f} GB of pictures are read from {files[0].path} as they are needed (--max_picture_gb {max_gb})")
    return StreamedPictures(files, device)


class HeldPictures:
    """All frames in memory."""

    def __init__(self, files: Sequence[PictureFile], device: torch.device):
        spec, count = files[0].spec, sum(file.frames for file in files)
        self.tensors = {
            name: torch.empty(picture_shape(spec, name, count), dtype=torch_dtype(name)) for name in spec.names
        }
        first = 0
        for pictures in files:
            mine = slice(first, first + pictures.frames)
            with opened(pictures.path) as file:
                for name, tensor in self.tensors.items():
                    for view, dataset in enumerate(pictures.datasets(file, name)):
                        tensor[mine, view] = torch.from_numpy(dataset[: pictures.frames])
            first += pictures.frames
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}

    def gather(self, rows: Int[Tensor, "b o"]) -> dict[str, Tensor]:
        """Frames by row of all trajectories in a line, (b o v y x c) under `rgb` and `depth`."""
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


class StreamedPictures:
    """Frames are read when a batch asks for them; what stays in memory is the batch, and the system's file cache."""

    def __init__(self, files: Sequence[PictureFile], device: torch.device):
        self.files = list(files)
        self.device = device
        self.opened = {path: open_file(path) for path in dict.fromkeys(file.path for file in files)}
        self.firsts = np.cumsum([0, *(file.frames for file in files)])

    def gather(self, rows: Int[Tensor, "b o"]) -> dict[str, Tensor]:
        """As `HeldPictures.gather`, but each frame asked for is read once, in the order of the file."""
        wanted, place = np.unique(rows.cpu().numpy(), return_inverse=True)  # in the order of the file
        spec = self.files[0].spec
        read = {name: np.empty(picture_shape(spec, name, len(wanted)), DTYPES[name][0]) for name in spec.names}
        owners = np.searchsorted(self.firsts, wanted, side="right") - 1
        for owner in np.unique(owners):
            mine, source = np.flatnonzero(owners == owner), self.files[owner]
            with reading(source.path):
                for name, frames in read.items():
                    for view, dataset in enumerate(source.datasets(self.opened[source.path], name)):
                        for target, row in zip(mine, wanted[mine] - self.firsts[owner], strict=True):
                            dataset.read_direct(frames, np.s_[row], np.s_[target, view])
        index = torch.from_numpy(place.reshape(rows.shape))
        return {name: torch.from_numpy(frames)[index].to(self.device) for name, frames in read.items()}


def open_file(path: Path) -> Any:
    """An HDF5 file that stays open for reading."""
    import h5py

    with reading(path):
        return h5py.File(path, "r")


def picture_shape(spec: ImageSpec, name: str, frames: int) -> tuple[int, ...]:
    """Shape (t v y x c) of `frames` pictures of one kind, `rgb` or `depth`, from all cameras."""
    return (frames, len(spec.cameras), spec.height, spec.width, DTYPES[name][1])


def torch_dtype(name: str) -> torch.dtype:
    """The type that `rgb` or `depth` has in memory."""
    return torch.from_numpy(np.empty(0, DTYPES[name][0])).dtype
