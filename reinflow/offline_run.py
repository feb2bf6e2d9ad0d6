"""One offline run, as Stages 1 and 2 share it:
evaluate the average policy, keep the best, save what `--resume` needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from reinflow import distributed
from reinflow.algos.bc import BehaviorCloning
from reinflow.checkpoint import Checkpoint
from reinflow.evaluation import EvalConfig
from reinflow.keeper import Keeper
from reinflow.loops import Metrics, OfflineConfig, offline
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

    keeper = Keeper(run, env, evaluation, generator, snapshot, camera)

    def on_eval(count: int) -> Metrics:
        return keeper.evaluate(averaged, count)

    start = 0
    if run.resumed:
        training = keeper.restore()
        learner.load_state_dict(training["learner"])
        start = training["step"]
    else:
        distributed.broadcast_(learner.state_dict())
        if evaluate_first:
            run.log(on_eval(0), step=0)
    run.status(phase="offline")
    batch_size = distributed.share(config.batch_size, "batch_size")
    offline(
        learner,
        lambda: draw(batch_size, generator),
        config,
        run,
        start=start,
        on_eval=on_eval,
        on_save=lambda count: keeper.save(count, {"learner": learner.state_dict()}),
    )
    if critic_state:
        keeper.hand_over(critic_state())
