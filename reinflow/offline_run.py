"""One offline run, as Stages 1 and 2 share it:
evaluate the average policy, keep the best, save what `--resume` needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from reinflow import distributed
from reinflow.algos.bc import BehaviorCloning
from reinflow.checkpoint import Checkpoint
from reinflow.evaluation import EvalConfig
from reinflow.keeper import Keeper, fitting
from reinflow.loops import Diverged, OfflineConfig, OfflineState, offline
from reinflow.run import Run
from reinflow.types import ChunkEnv
from reinflow.videos import Camera


def train_offline(
    learner: BehaviorCloning,
    draw: Callable[[int, torch.Generator], Any],
    run: Run,
    env: ChunkEnv,
    config: OfflineConfig,
    evaluation: EvalConfig,
    *,
    evaluate_first: bool,
    critic_state: Callable[[], dict[str, torch.Tensor]] | None = None,
    camera: Camera | None = None,
) -> None:
    """Train `learner` on batches of `draw(batch_size, generator)`; what is evaluated and kept is its moving average.

    `evaluate_first` makes the policy that it starts from the first candidate for `best_model.pt`.
    """
    generator = torch.Generator(run.device).manual_seed(run.config.seed)
    averaged = learner.ema.module

    def snapshot() -> Checkpoint:
        return Checkpoint(
            policy_spec=averaged.spec,
            env_spec=env.spec,
            policy_state=averaged.state_dict(),
            critic_state=critic_state() if critic_state else None,
        )

    state = OfflineState(evaluated=not evaluate_first)

    def training() -> dict[str, Any]:
        return {"learner": learner.state_dict(), "counters": asdict(state)}

    keeper = Keeper(run, env, evaluation, generator, snapshot, training, camera)

    def go_back(training: dict[str, Any]) -> None:
        nonlocal state
        with fitting(run.dir):
            learner.load_state_dict(training["learner"])
            state = OfflineState(**training["counters"])

    batch_size = distributed.share(config.batch_size, "batch_size")

    def train() -> None:
        run.status(phase="offline")
        offline(
            learner,
            lambda: draw(batch_size, generator),
            config,
            run,
            state=state,
            on_eval=lambda count: keeper.evaluate(averaged, count),
            on_save=keeper.save,
        )

    with keeper.saving_when_interrupted(lambda: state.count):
        if run.resumed:
            go_back(keeper.restore())
        else:
            distributed.broadcast_(learner.state_dict())
        while True:
            try:
                train()
                break
            except Diverged as problem:
                go_back(keeper.roll_back(problem))
    if critic_state:
        keeper.hand_over(critic_state())
