"""One online run:
evaluate the pretrained policy, fine-tune, keep the best, save what `--resume` needs, and warn when it goes wrong.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from reinflow import distributed
from reinflow.agent import ReinFlowAgent
from reinflow.algos.ppo import PPO
from reinflow.algos.rollout import RolloutBuffer
from reinflow.checkpoint import Checkpoint
from reinflow.evaluation import EvalConfig
from reinflow.keeper import Keeper
from reinflow.loops import Metrics, OnPolicyConfig, OnPolicyState, on_policy
from reinflow.run import Run
from reinflow.types import ChunkEnv
from reinflow.videos import Camera

FEW_UPDATES = 20


def train_online(
    agent: ReinFlowAgent,
    learner: PPO,
    run: Run,
    env: ChunkEnv,
    eval_env: ChunkEnv,
    config: OnPolicyConfig,
    evaluation: EvalConfig,
    camera: Camera | None = None,
) -> None:
    """Fine-tune `agent` in `env` for `config.total_timesteps`; evaluate without noise in `eval_env`."""
    generator = torch.Generator(run.device).manual_seed(run.config.seed)
    spec = agent.policy.spec
    buffer = RolloutBuffer(
        config.rollout_steps * env.num_envs,
        None if agent.trains_encoder else spec.cond_dim,
        spec.pred_horizon,
        spec.action_dim,
        agent.config.gamma,
        agent.config.gae_lambda,
        agent.actor.num_steps,
        run.device,
    )
    state = OnPolicyState()
    warn_of_few_updates(run, config, spec.act_horizon)

    def snapshot() -> Checkpoint:
        return Checkpoint(
            policy_spec=spec,
            env_spec=env.spec,
            policy_state=agent.policy.state_dict(),
            critic_state=agent.critic.state_dict(),
        )

    keeper = Keeper(run, eval_env, evaluation, generator, snapshot, camera)

    def on_eval(state: OnPolicyState) -> Metrics:
        metrics = keeper.evaluate(agent.policy, state.env_steps)
        if metrics and metrics["eval/success_once"] < keeper.first - 0.1:
            run.alarm(
                f"success fell below the pretrained {keeper.first:.2f}: lower --lr or raise --critic_warmup_steps"
            )
        return metrics

    def on_save(state: OnPolicyState) -> None:
        training = {"agent": agent.state_dict(), "learner": learner.state_dict(), "counters": asdict(state)}
        keeper.save(state.env_steps, training)

    if run.resumed:
        training = keeper.restore()
        agent.load_state_dict(training["agent"])
        learner.load_state_dict(training["learner"])
        state = OnPolicyState(**training["counters"])
    else:
        distributed.broadcast_(agent.state_dict())
        run.log(on_eval(state), step=0)
    on_policy(
        agent,
        learner,
        env,
        buffer,
        config,
        run,
        state=state,
        generator=generator,
        on_eval=on_eval,
        on_save=on_save,
    )


def warn_of_few_updates(run: Run, config: OnPolicyConfig, act_horizon: int) -> None:
    """One iteration at 256 envs x 128 decisions x 8 steps is 262,144 env steps: a million of them are four updates."""
    per_iteration = config.num_envs * config.rollout_steps * act_horizon
    iterations = config.total_timesteps // per_iteration
    if iterations < FEW_UPDATES:
        run.alarm(
            f"{config.total_timesteps} env steps are only {iterations} iterations of {per_iteration}: "
            f"lower --rollout_steps or --num_envs, or raise --total_timesteps"
        )
