"""Improve a policy in its task, with any online algorithm.

    python train_online.py --algorithm ppo --pretrained_path runs/shortcut_flow-PickCube-v1-seed0
    python train_online.py --algorithm dql --help

Each algorithm and its loop have flags of their own, which `--algorithm X --help` shows. Writes
`runs/<algorithm>-<env_id>-seed<seed>/`; its first evaluation is the pretrained policy's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from reinflow.algorithms import LOOPS, ONLINE, check_family, gamma_of
from reinflow.cli import Flat, run_script, with_flags
from reinflow.data.config import DemoConfig
from reinflow.envs import EnvConfig
from reinflow.errors import UserError
from reinflow.registry import Choosing, options_of
from reinflow.run.config import RunConfig
from reinflow.training.config import EvalConfig, OnPolicyConfig

if TYPE_CHECKING:
    from reinflow.data.trajectories import Demos
    from reinflow.training.loops import Loop
    from reinflow.training.stages import Beginning, Stage


@dataclass(frozen=True)
class Config(Choosing):
    """Online training by any algorithm."""

    algorithm: str = "ppo"
    """what learns; it and its loop have flags of their own"""
    pretrained_path: str = ""
    """checkpoint of an offline stage: a file or a run directory (its best_model.pt)"""
    initial_noise_scale: float | None = None
    """std of the noise x_0 that a flow starts from, 0 to 1; None takes the checkpoint's"""
    run: Flat[RunConfig] = field(default_factory=RunConfig)
    env: Flat[EnvConfig] = field(default_factory=EnvConfig)
    demos: Flat[DemoConfig] = field(default_factory=DemoConfig)
    algorithm_options: Any = options_of(ONLINE)
    loop: Any = options_of(LOOPS)
    evaluation: Flat[EvalConfig] = field(default_factory=EvalConfig)


def main(config: Config) -> None:
    """Train the checkpoint on its own task, evaluate along the way and keep the best policy."""
    from reinflow.data.demos import open_demos
    from reinflow.storage.checkpoint import load_checkpoint
    from reinflow.training.stages import Beginning, train_online
    from reinflow.types import Objective

    if not config.pretrained_path:
        raise UserError("--pretrained_path is missing: pass a run directory or a best_model.pt of an offline stage")
    checkpoint = load_checkpoint(config.pretrained_path)
    check_family(ONLINE, config.algorithm, checkpoint.policy_spec.family)
    task = config.env.completed(checkpoint.env_spec, checkpoint.objective)
    gamma = gamma_of(config.algorithm_options, checkpoint.objective)
    objective = Objective(gamma, task.reward_mode, task.terminate_on_success)
    settled = replace(with_flags(config, {"gamma": gamma}), env=config.env.settled(objective))
    demos = None
    if getattr(config.loop, "demo_share", 0.0):
        demos = open_demos(config.demos, task, need_rewards=True, reward_mode=task.reward_mode)
    beginning = Beginning(
        name=config.algorithm,
        checkpoint=checkpoint,
        path=config.pretrained_path,
        spec=checkpoint.policy_spec.starting_with(config.initial_noise_scale),
        objective=objective,
        num_envs=config.loop.num_envs,
        total_timesteps=config.loop.total_timesteps,
        reconfiguration_freq=getattr(config.loop, "reconfiguration_freq", None),
    )
    train_online(settled, beginning, partial(loop_of, settled, beginning, demos))


def loop_of(config: Config, beginning: Beginning, demos: Demos | None, stage: Stage) -> Loop:
    """The loop of the chosen algorithm, with what it trains."""
    from reinflow.algos.setting import Setting
    from reinflow.data.replay import ReplayBuffer
    from reinflow.training.fine_tuning import warn_of_few_iterations
    from reinflow.training.loops import OnPolicy
    from reinflow.training.off_policy import OffPolicy
    from reinflow.training.stages import fitted, fitting_parts, windows

    run, env, loop, gamma = stage.run, stage.env, config.loop, beginning.objective.gamma
    parts = fitting_parts(beginning, run)
    on_policy = isinstance(loop, OnPolicyConfig)
    setting = Setting(gamma, parts=parts, num_envs=env.num_envs, rollout_steps=loop.rollout_steps if on_policy else 0)
    learner = ONLINE[config.algorithm].build(stage.policy, config.algorithm_options, setting)
    if on_policy:
        warn_of_few_iterations(run, loop, stage.policy.spec.act_horizon)
        return OnPolicy(learner, env, loop, run, run.generator())
    draw = None
    if demos is not None:
        given = fitted(demos, config.demos, env.spec)
        draw = windows(given, config.demos, stage.policy.spec, env.spec, gamma, run).sample_transitions
    replay = ReplayBuffer(loop.replay_size, gamma, run.device, loop.replay_gb)
    return OffPolicy(learner, env, replay, loop, run, run.generator(), draw)


if __name__ == "__main__":
    run_script(main, Config, loads="torch, demonstrations and the simulator")
