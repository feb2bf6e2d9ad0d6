"""What keeps a GPU from being used, and what shrinks a run that doesn't fit on it, in sentences."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from reinflow.errors import UserError

GIB = 2**30


def hidden_gpu() -> str | None:
    """Why torch sees no GPU though there is an NVIDIA driver, with the fix; None where all is as it seems."""
    if not shutil.which("nvidia-smi"):
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None:
        return "there is an NVIDIA driver but torch is a CPU build: install torch's CUDA build to use physx_cuda"
    if any("too old" in str(warning.message) for warning in caught):
        return (
            f"the NVIDIA driver{driver_cuda()} is too old for this torch, a build for CUDA {torch.version.cuda}: "
            "update the driver, or install a build of torch for a CUDA that it knows"
        )
    return f"torch (CUDA {torch.version.cuda}) sees no GPU: update the driver or check CUDA_VISIBLE_DEVICES"


def driver_cuda() -> str:
    """The newest CUDA that the driver knows, as part of a sentence; nothing where it doesn't say."""
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    version = ask() if ask else 0
    return f" (CUDA {version // 1000}.{version % 1000 // 10})" if version else ""


@contextmanager
def enough_memory(levers: Sequence[str]) -> Iterator[None]:
    """UserError instead of torch's where a GPU's memory runs out inside; `levers` say what shrinks by how much."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"the GPU has no memory left{in_use()}: {'; '.join(levers)}") from error


def in_use() -> str:
    """What is taken of the GPU's memory, as part of a sentence; nothing where there is no GPU."""
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    mine = torch.cuda.memory_reserved()
    return (
        f" ({mine / GIB:.1f} GiB of this process's tensors, {(total - free) / GIB:.1f} of {total / GIB:.1f} GiB in all)"
    )
