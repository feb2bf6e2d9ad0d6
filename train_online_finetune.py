"""Stage 3: fine-tune a checkpoint of Stage 1 or 2 online with ReinFlow, PPO over the noisy denoising chain.

    python train_online_finetune.py --pretrained_path runs/shortcut_flow-PickCube-v1-seed0 --total_timesteps 1000000
    python train_online_finetune.py --pretrained_path ... --sim_backend physx_cuda --num_envs 256 --rollout_steps 32

    python train_online_finetune.py --preset scratch --env_id Hopper-v5

Writes `runs/reinflow-<env_id>-seed<seed>/`; its first evaluation is the pretrained policy's. With `--scratch` there is
none: PPO trains an untrained policy, a Gaussian unless `--family` says otherwise, into `runs/scratch-<env_id>-...`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from reinflow.algos.config import PPOFlags
from reinflow.algos.schedules import NoiseConfig
from reinflow.cli import Flat, run_script
from reinflow.envs import EnvConfig
from reinflow.policies import NoiseNetConfig, PolicyConfig
from reinflow.presets import ONLINE_PRESETS, beside_the_guide
from reinflow.recipes import ExpectedPolicy, flags_of
from reinflow.run.config import RunConfig
from reinflow.runtime.config import AccelerationConfig
from reinflow.training.config import EvalConfig, OnPolicyConfig
from reinflow.training.scratch import refuse_half_a_beginning, untrained, untrained_policy

if TYPE_CHECKING:
    from reinflow.algos.config import PPOConfig
    from reinflow.policies.base import Policy
    from reinflow.training.loops import OnPolicy
    from reinflow.training.stages import Beginning, Stage


@dataclass(frozen=True)
class Config:
    """Stage 3: online fine-tuning."""

    pretrained_path: str = ""
    """checkpoint of Stage 1 or 2: a file or a run directory (its best_model.safetensors)"""
    num_inference_steps: int | None = None
    """denoising steps K that are fine-tuned; None takes the checkpoint's, or 4 from scratch"""
    scratch: bool = False
    """start from an untrained policy, whose family, net and horizons are then chosen here; --preset scratch also sets
    what PPO needs for that"""
    ft_denoising_steps: int | None = None
    """the last so many of the K steps are fine-tuned, the others stay the checkpoint's; None fine-tunes all of them"""
    freeze_visual_encoder: bool = False
    """keep an image encoder fixed: pictures are encoded once per decision and not stored"""
    asymmetric_critic: bool = False
    """V sees the simulator's full state while the policy sees pictures; V is not needed after training"""
    expected: Flat[ExpectedPolicy] = field(default_factory=ExpectedPolicy)
    run: Flat[RunConfig] = field(default_factory=RunConfig)
    env: Flat[EnvConfig] = field(default_factory=EnvConfig)
    policy: Flat[PolicyConfig] = field(default_factory=untrained_policy)
    online: Flat[OnPolicyConfig] = field(default_factory=OnPolicyConfig)
    ppo: Flat[PPOFlags] = field(default_factory=PPOFlags)
    noise: Flat[NoiseConfig] = field(default_factory=NoiseConfig)
    noise_net: Flat[NoiseNetConfig] = field(default_factory=NoiseNetConfig)
    acceleration: Flat[AccelerationConfig] = field(default_factory=AccelerationConfig)
    evaluation: Flat[EvalConfig] = field(default_factory=EvalConfig)


def main(config: Config) -> None:
    """Fine-tune the checkpoint on its own task, evaluate along the way and keep the best policy."""
    from reinflow.storage.checkpoint import load_checkpoint
    from reinflow.training.fine_tuning import beside_the_pretrained, memory_levers
    from reinflow.training.stages import Beginning, train_online
    from reinflow.training.trainer import no_inspection
    from reinflow.types import Objective

    refuse_half_a_beginning(config.scratch, config.pretrained_path, config.policy)
    if config.scratch:
        checkpoint = untrained(config.policy, config.env.completed(), config.num_inference_steps, config.run.seed)
    else:
        checkpoint = load_checkpoint(config.pretrained_path)
    config.expected.check(checkpoint.policy_spec)
    task = config.env.completed(checkpoint.env_spec, checkpoint.objective)
    ppo = config.ppo.completed(checkpoint.objective)
    objective = Objective(ppo.gamma, task.reward_mode, task.terminate_on_success)
    spec = checkpoint.policy_spec.starting_with(config.policy.initial_noise_scale)
    beginning = Beginning(
        name="scratch" if config.scratch else "reinflow",
        checkpoint=checkpoint,
        path=config.pretrained_path,
        spec=spec,
        objective=objective,
        num_envs=config.online.num_envs,
        total_timesteps=config.online.total_timesteps,
        reconfiguration_freq=config.online.reconfiguration_freq,
        privileged=config.asymmetric_critic,
        prepare=partial(holding, config),
        levers=memory_levers(ppo.rows_at_a_time, spec, config.online.num_envs, not config.freeze_visual_encoder),
        inspect=no_inspection if config.scratch else beside_the_pretrained,
    )
    settled = replace(config, ppo=ppo, env=config.env.settled(objective))
    train_online(settled, beginning, partial(fine_tuning, settled, ppo, beginning))


def holding(config: Config, policy: Policy) -> Policy:
    """The policy, whose early denoising steps stay as they are where the flags fine-tune the last ones alone."""
    from reinflow.policies import holding_early_steps

    if config.ft_denoising_steps is None:
        return policy
    steps = config.num_inference_steps or policy.spec.num_inference_steps
    return holding_early_steps(policy, config.ft_denoising_steps, steps)


def fine_tuning(config: Config, ppo: PPOConfig, beginning: Beginning, stage: Stage) -> OnPolicy:
    """ReinFlow in its loop, with V of the checkpoint where that predicts the return of this run."""
    from reinflow.agent import ReinFlowAgent
    from reinflow.algos.ppo import PPO
    from reinflow.algos.reinflow import ReinFlow, rollout_buffer
    from reinflow.algos.scratch import FromScratch
    from reinflow.training.fine_tuning import hint_at_cores, warn_of_few_iterations
    from reinflow.training.loops import OnPolicy

    run, policy, env = stage.run, stage.policy, stage.env
    agent = ReinFlowAgent.from_policy(
        policy,
        ppo,
        config.noise,
        config.noise_net,
        config.num_inference_steps,
        freeze_visual_encoder=config.freeze_visual_encoder,
        privileged_dim=env.reset()["privileged"].shape[-1] if config.asymmetric_critic else None,
    )
    if warning := agent.load_critic(beginning.checkpoint, beginning.path, beginning.objective):
        run.alarm(warning)
    if env.spec.sim_backend == "physx_cpu_batched" and config.env.num_workers is None:
        hint_at_cores(run, config.online, env.num_envs)
    agent.accelerate_(config.acceleration)
    warn_of_few_iterations(run, config.online, policy.spec.act_horizon)
    buffer = rollout_buffer(agent, ppo, config.online.rollout_steps * env.num_envs)
    learner = (FromScratch if config.scratch else ReinFlow)(agent, PPO(agent, ppo), buffer)
    return OnPolicy(learner, env, config.online, run, run.generator())


if __name__ == "__main__":
    recipes, loads = partial(flags_of, stage="ft"), "torch and the simulator"
    run_script(main, Config, presets=ONLINE_PRESETS, recipes=recipes, notice=beside_the_guide, loads=loads)
