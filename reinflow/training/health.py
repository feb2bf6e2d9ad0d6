"""What the logged numbers of an iteration say of it."""

from __future__ import annotations

from reinflow.algos.guard import MOST_IN_A_ROW


class Diverged(RuntimeError):
    """Training went wrong in a way that going on won't mend; `advice` is for the user."""

    def __init__(self, problem: str, advice: str):
        super().__init__(problem)
        self.advice = advice


def refuse_to_diverge(values: dict[str, float]) -> None:
    """Raise Diverged where logged numbers say that updates stopped being updates."""
    row = max((value for name, value in values.items() if name.endswith("skipped_in_a_row")), default=0.0)
    if row >= MOST_IN_A_ROW:
        raise Diverged(
            f"{row:.0f} updates in a row had a loss or gradient that is not finite",
            "lower the learning rates, or look for extreme values in the data with docs/metrics.md",
        )


def left_out(values: dict[str, float]) -> list[str]:
    """Sentences where guards kept something out of training."""
    found = []
    if values.get("rollout/broken", 0.0) > 0:
        found.append(
            "some decisions were left out: an observation, reward, action or value was not usable, or a worker died"
        )
    if any(value > 0 for name, value in values.items() if name.endswith("skipped_steps")):
        found.append("some updates were skipped: their loss or gradient was not finite")
    return found
