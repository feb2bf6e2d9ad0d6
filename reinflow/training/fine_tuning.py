"""What an online run says of itself beside the policy that it started from."""

from __future__ import annotations

from typing import cast

from reinflow.envs import usable_cores
from reinflow.envs.cores import hint_at_more_envs
from reinflow.policies import PolicySpec
from reinflow.run.run import Run
from reinflow.run.status import HEADLINES
from reinflow.training.config import OnPolicyConfig
from reinflow.training.learner import Metrics
from reinflow.training.loops import Online
from reinflow.training.trainer import Trainer

FEW_ITERATIONS = 10
"""the quick start's 13 gain 25 points, so a run that is much shorter is the one to warn of"""


def warn_of_few_iterations(run: Run, config: OnPolicyConfig, act_horizon: int) -> None:
    """One iteration at 256 envs x 128 decisions x 8 steps is 262,144 env steps: a million of them are four updates."""
    per_iteration = config.num_envs * config.rollout_steps * act_horizon
    iterations = config.total_timesteps // per_iteration
    if iterations < FEW_ITERATIONS:
        run.alarm(
            f"{config.total_timesteps} env steps are only {iterations} iterations of {per_iteration}: "
            f"lower --rollout_steps or --num_envs, or raise --total_timesteps"
        )


def hint_at_cores(run: Run, config: OnPolicyConfig, num_envs: int) -> None:
    """Where this process's envs are too few for its simulator processes, one per core."""
    if hint := hint_at_more_envs(num_envs, config.rollout_steps, usable_cores()):
        run.say(f"note: {hint}")


def beside_the_pretrained(trainer: Trainer, metrics: Metrics) -> Metrics:
    """Alarms where the policy never moved, or moved to the worse."""
    loop, keeper = cast(Online, trainer.loop), trainer.keeper
    if loop.over and loop.count and not loop.policy_updates:
        trainer.run.alarm(
            f"the policy never moved: all {loop.step} env steps were {loop.warm_up}: "
            f"lower --{loop.warm_up_flag} or raise --total_timesteps"
        )
    if keeper.first and loop.policy_updates and keeper.score(metrics).is_below(keeper.first):
        trainer.run.alarm(
            f"{HEADLINES[keeper.headline]} fell below the pretrained {keeper.first.value:.2f}: "
            f"lower --lr or raise --{loop.warm_up_flag}"
        )
    return {}


def memory_levers(rows: int, spec: PolicySpec, num_envs: int, trains_encoder: bool) -> list[str]:
    """What makes Stage 3 smaller on a GPU, by how much; `rows` are the decisions that it evaluates at a time."""
    levers = [
        f"--micro_batch_size {max(rows // 2, 1)} halves what a gradient step holds of its {rows} decisions x "
        f"{spec.num_inference_steps} denoising steps, and gives the same gradient"
    ]
    if spec.image is not None and trains_encoder:
        seen = spec.obs_horizon * len(spec.image.cameras) * spec.image.height * spec.image.width
        pictures = seen * (3 * spec.image.rgb + 2 * spec.image.depth)
        features = 4 * spec.obs_horizon * spec.visual_feature_dim
        levers.append(
            f"--freeze_visual_encoder keeps {features / 1000:.0f} kB of features of a decision instead of "
            f"{pictures / 1000:.0f} kB of pictures, and no encoder's gradient"
        )
    return [*levers, f"--num_envs {max(num_envs // 2, 1)} halves the rollout, and what a GPU simulator holds"]
