"""A stand-in for a GPU: tensors that tell whenever the host waits for what they hold.

    with Accelerator() as gpu:
        x = torch.zeros(3, device=gpu.device)
        with gpu.watched() as reads:
            bool(x.any())
        assert [read.what for read in reads] == ["__bool__"]

On a machine with a GPU these are CUDA tensors. Elsewhere they are CPU tensors of a class of their own, `Accelerated`:
what is made for a device, or computed from such a tensor, is one, and refuses to meet a tensor of the host, as CUDA's
do. What torch reads inside of its own operations isn't seen.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[2]
OURS = (str(ROOT / "reinflow"), str(ROOT / "nets"))
READS = frozenset({
    "item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__",
    "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "equal", "allclose", "is_nonzero",
})  # fmt: skip
"""what waits for a GPU"""
MAKERS = frozenset({"tensor", "as_tensor", "from_numpy"})
"""what copies numbers of the host to a GPU, which waits too"""
CROSSINGS = frozenset({
    "copy_", "to", "cuda", "__getitem__", "__setitem__", "__get__", "__set__", "_has_compatible_shallow_copy_type",
})  # fmt: skip
"""what may be given tensors of both sides"""


class Accelerated(Tensor):
    """A CPU tensor that plays one of a GPU."""


@dataclass(frozen=True)
class Read:
    """A moment in which the host waited."""

    what: str
    stack: tuple[str, ...]
    """functions of this project, the innermost one last"""


class Accelerator(TorchFunctionMode):
    """While it is entered, tensors made for `device` are the GPU's."""

    def __init__(self) -> None:
        super().__init__()
        self.real = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.real else "cpu")
        self.reads: list[Read] | None = None
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = func.__name__
        tensors = list(tensors_in((*args, *kwargs.values())))
        self._refuse_strangers(name, tensors)
        if waits(name, args, kwargs, any(map(self.owns, tensors))):
            self._note(name)
            if name == "cpu":
                return func(*args, **kwargs).as_subclass(Tensor)
        result = func(*args, **kwargs)
        made_here = kwargs.get("device") is not None and not tensors
        sent = name == "to" and any(value == self.device for value in (*args[1:], kwargs.get("device")))
        gradient = name == "__get__" and any(map(self.owns, tensors))  # autograd makes plain tensors
        return self.moved(result) if (made_here or sent or gradient) and isinstance(result, Tensor) else result

    def owns(self, tensor: Tensor) -> bool:
        """Whether it is one of the GPU's."""
        return tensor.is_cuda or isinstance(tensor, Accelerated)

    def moved(self, tree: Any) -> Any:
        """Tensors, or dicts and dataclasses of them, to the GPU; what there isn't stays so."""
        if tree is None:
            return None
        if isinstance(tree, Tensor):
            return tree.to(self.device) if self.real else tree.as_subclass(Accelerated)
        if isinstance(tree, dict):
            return {name: self.moved(value) for name, value in tree.items()}
        return type(tree)(**{name: self.moved(value) for name, value in vars(tree).items()})

    def taken(self, tree: Any) -> Any:
        """A tensor back to the host, for the simulator; anything else as it is."""
        return tree.cpu().as_subclass(Tensor) if isinstance(tree, Tensor) else tree

    def moved_(self, module: nn.Module) -> None:
        """All weights and buffers of a module."""
        module.to(self.device)
        for part in () if self.real else module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    moved = weight.detach().as_subclass(Accelerated)
                    part._parameters[name] = nn.Parameter(moved, requires_grad=weight.requires_grad)
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = value.as_subclass(Accelerated)

    @contextmanager
    def paused_(self) -> Iterator[None]:
        """Inside, the host works alone."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    @contextmanager
    def watched(self) -> Iterator[list[Read]]:
        """The waits inside."""
        before, self.reads = self.reads, []
        try:
            yield self.reads
        finally:
            self.reads = before

    def _note(self, what: str) -> None:
        if self.reads is not None:
            frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OURS)]
            self.reads.append(Read(what, tuple(frame.name for frame in frames)))

    def _refuse_strangers(self, name: str, tensors: list[Tensor]) -> None:
        """As CUDA does; it takes numbers of the host, which have no dimension."""
        strangers = [tensor for tensor in tensors if not self.owns(tensor) and tensor.dim() > 0]
        if strangers and len(strangers) < len(tensors) and name not in CROSSINGS and any(map(self.owns, tensors)):
            raise AssertionError(f"{name} is given tensors of the GPU and of the host, of shape {strangers[0].shape}")


def waits(name: str, args: Any, kwargs: Any, on_gpu: bool) -> bool:
    """Whether a call makes the host wait for the GPU, or copies from one to the other."""
    if not on_gpu:
        return name in MAKERS and kwargs.get("device") is not None
    if name in ("__getitem__", "__setitem__"):
        by_mask = any(index.dtype == torch.bool for index in tensors_in(args[1:2]))
        return by_mask and (name == "__getitem__" or any(value.numel() > 1 for value in tensors_in(args[2:])))
    if name == "to":
        return any(str(target) == "cpu" for target in (*args[1:], *kwargs.values()) if args[0].is_cuda)
    return name in READS or (name == "where" and len(args) == 1)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Tensors among values, and in tuples and lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)
