"""The rollout of an iteration alone: policy, chunked envs, critic and buffer, against straightforward code."""

from __future__ import annotations

from benchmarks import iteration


def main() -> None:
    """Run the benchmark of iterations without their updates."""
    iteration.main(rollout_only=True)


if __name__ == "__main__":
    main()
