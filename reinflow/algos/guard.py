"""Keeps a loss or gradient that is not finite out of the weights, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.runtime import distributed

MOST_IN_A_ROW = 10
"""skipped steps in a row after which a run goes back to its last checkpoint"""


class StepGuard:
    """Steps fused optimisers, which leave weights and moments as they are where their `found_inf` is 1.

    Its counters stay on the device, and in place for CUDA graphs; the logger reads them with the other metrics.
    """

    def __init__(self) -> None:
        self.skipped, self.in_a_row, self.longest = torch.zeros(3).unbind()

    def reset(self) -> None:
        """Forget what was skipped."""
        for counter in (self.skipped, self.in_a_row, self.longest):
            counter.zero_()

    def _move(self, device: torch.device) -> None:
        self.skipped, self.in_a_row, self.longest = (
            counter.to(device) for counter in (self.skipped, self.in_a_row, self.longest)
        )

    def step(self, loss: Float[Tensor, ""], parts: Iterable[tuple[torch.optim.Optimizer, Float[Tensor, ""]]]) -> None:
        """Step each optimiser unless `loss`, or the gradient norm that it comes with, is not finite in any process."""
        skipped: Float[Tensor, ""] | None = None
        for optimizer, norm in parts:
            bad = distributed.largest((loss.detach() + norm).isfinite().logical_not().float())
            optimizer.found_inf = bad  # type: ignore[attr-defined]
            optimizer.step()
            skipped = bad if skipped is None else torch.maximum(skipped, bad)
        if skipped is not None:
            if self.skipped.device != skipped.device:
                self._move(skipped.device)
            self.skipped.add_(skipped)
            self.in_a_row.add_(1).mul_(skipped)
            torch.maximum(self.longest, self.in_a_row, out=self.longest)

    def metrics(self) -> dict[str, Tensor]:
        """Skipped steps since the start, and the most of them in a row."""
        return {"skipped_steps": self.skipped.clone(), "skipped_in_a_row": self.longest.clone()}
