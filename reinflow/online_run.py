"""One online run:
evaluate the pretrained policy, fine-tune, keep the best, save what `--resume` needs, and warn when it goes wrong.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from reinflow import distributed
from reinflow.agent import ReinFlowAgent
from reinflow.algos.ppo import PPO
from reinflow.algos.rollout import RolloutBuffer
from reinflow.checkpoint import Checkpoint, load_state_
from reinflow.evaluation import EvalConfig
from reinflow.keeper import Keeper, fitting
from reinflow.loops import Diverged, Metrics, OnPolicyConfig, OnPolicyState, on_policy
from reinflow.run import Run
from reinflow.types import ChunkEnv, Obs
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

    def training() -> dict[str, Any]:
        return {
            "agent": agent.state_dict(),
            "learner": learner.state_dict(),
            "counters": asdict(state),
            "env": None if distributed.active() else env.state(),
        }

    keeper = Keeper(run, eval_env, evaluation, generator, snapshot, training, camera)

    def on_eval(state: OnPolicyState) -> Metrics:
        metrics = keeper.evaluate(agent.policy, state.env_steps)
        if metrics and metrics["eval/success_once"] < keeper.first - 0.1:
            run.alarm(
                f"success fell below the pretrained {keeper.first:.2f}: lower --lr or raise --critic_warmup_steps"
            )
        return metrics

    def go_back(training: dict[str, Any]) -> None:
        nonlocal state
        with fitting(run.dir):
            load_state_(agent, training["agent"], "the agent")
            learner.load_state_dict(training["learner"])
            state = OnPolicyState(**training["counters"])

    def train(obs: Obs) -> None:
        on_policy(
            agent,
            learner,
            env,
            obs,
            buffer,
            config,
            run,
            state=state,
            generator=generator,
            on_eval=on_eval,
            on_mark=lambda state: keeper.mark(state.env_steps),
            on_save=lambda state: keeper.save_mark(),
        )

    with keeper.saving_when_interrupted():
        obs = None
        if run.resumed:
            saved = keeper.restore()
            go_back(saved)
            obs = continued(env, saved["env"], run)
        else:
            distributed.broadcast_(agent.state_dict())
        while True:
            try:
                train(env.reset(seed=run.config.seed + state.iteration) if obs is None else obs)
                return
            except Diverged as problem:
                go_back(keeper.roll_back(problem))
                obs = None


def continued(env: ChunkEnv, state: Any, run: Run) -> Obs | None:
    """Bring the envs to where they were; None, with an alarm, where that can't be and new episodes have to start.

    The envs of several processes always start new ones.
    """
    obs = None if state is None or distributed.active() else env.restore(state)
    if obs is None:
        run.alarm("the envs could not go on where they were: new episodes started")
    return obs


def warn_of_few_updates(run: Run, config: OnPolicyConfig, act_horizon: int) -> None:
    """One iteration at 256 envs x 128 decisions x 8 steps is 262,144 env steps: a million of them are four updates."""
    per_iteration = config.num_envs * config.rollout_steps * act_horizon
    iterations = config.total_timesteps // per_iteration
    if iterations < FEW_UPDATES:
        run.alarm(
            f"{config.total_timesteps} env steps are only {iterations} iterations of {per_iteration}: "
            f"lower --rollout_steps or --num_envs, or raise --total_timesteps"
        )
