"""What makes a learner faster on a GPU without changing what it computes: CUDA graphs and compilation, both optional.

A denoising chain is hundreds of small launches, a gradient step hundreds more; as one graph each is one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reinflow.runtime import trees
from reinflow.runtime.config import AccelerationConfig

WARMUPS = 3
"""plain calls before a capture, in which libraries choose kernels and optimisers make their state"""

Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""takes a function of no arguments; gives what runs it again, and its results, which every such run overwrites"""


def capture_cuda(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A CUDA graph of `function`, which is recorded, not run. RuntimeError where it does what a graph can't hold."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
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


class Replayed:
    """`function` of tensors, or of trees of them, as a graph for each set of shapes after `WARMUPS` plain calls.

    What else `function` reads has to stay where it is and be changed in place. Results are copies, so they outlive the
    next call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        capture: Capture = capture_cuda,
        warm_up: Callable[[Callable[[], Any]], Any] = beside,
    ):
        self.function = function
        self.capture = capture
        self.warm_up = warm_up
        self.works = True
        self.calls: Counter[Any] = Counter()
        self.graphs: dict[Any, tuple[dict[str, Tensor], Callable[[], None], Any]] = {}

    def __call__(self, *args: Any) -> Any:
        """Results of `function` for these arguments, by replaying the graph of their shapes where there is one."""
        plain, tensors = trees.split(args)
        shapes = tuple((place, value.shape, value.dtype) for place, value in tensors.items())
        if shapes not in self.graphs and self.works:
            self.calls[shapes] += 1
            if self.calls[shapes] <= WARMUPS:
                return self.warm_up(lambda: self.function(*args))
            self._capture(plain, tensors, shapes)
        if shapes not in self.graphs:
            return self.function(*args)
        held, replay, results = self.graphs[shapes]
        for place, value in tensors.items():
            held[place].copy_(value)
        replay()
        return trees.copied(results)

    def _capture(self, plain: Any, tensors: dict[str, Tensor], shapes: Any) -> None:
        held = trees.copied(tensors)
        try:
            self.graphs[shapes] = held, *self.capture(lambda: self.function(*trees.join(plain, held)))
        except RuntimeError as error:
            self.works = False
            warnings.warn(f"no CUDA graph of {self.function.__name__}, plain code goes on: {error}", stacklevel=3)


def replayed(function: Callable[..., Any], config: AccelerationConfig, device: torch.device) -> Callable[..., Any]:
    """`function` as CUDA graphs where they are asked for and there is a GPU, else itself."""
    return Replayed(function) if config.cuda_graphs and device.type == "cuda" else function
