"""Speed on a GPU: CUDA graphs, which change nothing, and precision, which drawing and scoring a chain have to share.

A denoising chain is hundreds of small launches, a gradient step hundreds more; as one graph each is one.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reinflow.runtime import trees

WARMUPS = 3
"""plain calls before a capture, in which libraries choose kernels and optimisers make their state"""

MOST_GRAPHS = 16
"""of one function: whoever calls it with ever new shapes gets plain code for those beyond"""

Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""takes a function of no arguments; gives what runs it again, and its results, which every such run overwrites"""


@dataclass(frozen=True)
class Precision:
    """How the networks of a denoising chain multiply, whether it is drawn or scored."""

    tf32: bool = False
    """products of float32 keep 10 bits of their factors"""
    bf16: bool = False
    """products keep 7"""

    def rounds(self, device: torch.device) -> bool:
        """Whether kernels for other numbers of rows give visibly other numbers, so that one has to judge them all."""
        return self.bf16 or (self.tf32 and device.type == "cuda")

    @contextmanager
    def products(self) -> Iterator[None]:
        """Inside, products of float32 are exact or TF32, whatever the process had chosen."""
        before = tf32_allowed()
        allow_tf32(*[self.tf32] * len(before))
        try:
            yield
        finally:
            allow_tf32(*before)

    @contextmanager
    def networks(self, device: torch.device) -> Iterator[None]:
        """Inside, networks run in this precision; what they give may be bfloat16."""
        with self.products(), torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext():
            yield


def tf32_allowed() -> tuple[bool, bool]:
    """Whether matrix products, and whether convolutions, may take TF32 in this process."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def allow_tf32(products: bool, convolutions: bool) -> None:
    """Let a GPU multiply in TF32, or not, from now on."""
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions


EXACT = Precision()
"""float32"""


class CudaCapture:
    """Makes CUDA graphs that share their memory: results are copied before another graph of them runs."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """A graph of `function`, which is recorded, not run. RuntimeError where it does what a graph can't hold."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = function()
        return graph.replay, results


def beside(function: Callable[[], Any]) -> Any:
    """`function` on a stream of its own, where torch wants what comes before a capture to run."""
    current, own = torch.cuda.current_stream(), torch.cuda.Stream()
    own.wait_stream(current)
    with torch.cuda.stream(own):
        results = function()
    current.wait_stream(own)
    return results


def nothing_else() -> Hashable:
    """What a function depends on that has its arguments alone."""
    return None


class Replayed:
    """`function` of data as a graph for each set of shapes, and of the arguments that are no tensors.

    Plain on a CPU, for the first `WARMUPS` calls and for all but `MOST_GRAPHS` sets. What else `function` reads has to
    stay where it is and be changed in place, or be told apart by `depends_on`. Results are copies, so they outlive the
    next call.
    """

    device_type = "cuda"
    """where graphs are made"""

    def __init__(
        self,
        function: Callable[..., Any],
        capture: Capture | None = None,
        warm_up: Callable[[Callable[[], Any]], Any] = beside,
        depends_on: Callable[[], Hashable] = nothing_else,
    ):
        self.function = function
        self.capture = capture or CudaCapture()
        self.warm_up = warm_up
        self.depends_on = depends_on
        self.works = True
        self.forget()

    def forget(self) -> None:
        """Drop all graphs, after something that they read has moved."""
        self.calls: Counter[Hashable] = Counter()
        self.graphs: dict[Hashable, tuple[dict[str, Tensor], Callable[[], None], Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Replayed:
        """Of the copy of what `function` belongs to; it has no graphs yet."""
        function, depends_on = copy.deepcopy(self.function, memo), copy.deepcopy(self.depends_on, memo)
        return type(self)(function, depends_on=depends_on)

    def __call__(self, *args: Any) -> Any:
        """Results of `function` for these arguments, by replaying the graph of their shapes where there is one."""
        plain, tensors = trees.split(args)
        if not any(value.device.type == self.device_type for value in tensors.values()):
            return self.function(*args)
        shapes = tuple((place, value.shape, value.dtype) for place, value in tensors.items())
        key = shapes, repr(plain), torch.is_inference_mode_enabled(), self.depends_on()
        if key not in self.graphs and self.works and len(self.graphs) < MOST_GRAPHS:
            self.calls[key] += 1
            if self.calls[key] <= WARMUPS:
                return self.warm_up(lambda: self.function(*args))
            self._capture(plain, tensors, key)
        if key not in self.graphs:
            return self.function(*args)
        held, replay, results = self.graphs[key]
        for place, value in tensors.items():
            held[place].copy_(value)
        replay()
        return trees.copied(results)

    def _capture(self, plain: Any, tensors: dict[str, Tensor], key: Hashable) -> None:
        held = trees.copied(tensors)
        try:
            self.graphs[key] = held, *self.capture(lambda: self.function(*trees.join(plain, held)))
        except RuntimeError as error:
            self.works = False
            warnings.warn(f"no CUDA graph of {self.function.__name__}, plain code goes on: {error}", stacklevel=3)


def replayed(
    function: Callable[..., Any],
    wanted: bool,
    device: torch.device,
    depends_on: Callable[[], Hashable] = nothing_else,
) -> Callable[..., Any]:
    """`function` as CUDA graphs where they are `wanted` and its weights are on a GPU, else itself."""
    return Replayed(function, depends_on=depends_on) if wanted and device.type == "cuda" else function
