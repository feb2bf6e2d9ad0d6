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
from reinflow.status import HEADLINES
from reinflow.types import ChunkEnv, Objective, Obs
from reinflow.videos import Camera

FEW_ITERATIONS = 10
"""the quick start's 13 gain 25 points, so a run that is much shorter is the one to warn of"""
ADDED_LATER = {"policy_updates": 1}
"""counters that older states lack; their runs took every policy for a moved one"""


class OnlineRun:
    """Fine-tunes `agent` in `env` for `config.total_timesteps`; evaluates it without noise in `eval_env`."""

    def __init__(
        self,
        agent: ReinFlowAgent,
        learner: PPO,
        run: Run,
        env: ChunkEnv,
        eval_env: ChunkEnv,
        config: OnPolicyConfig,
        evaluation: EvalConfig,
        objective: Objective,
        camera: Camera | None = None,
    ):
        self.agent = agent
        self.learner = learner
        self.run = run
        self.env = env
        self.config = config
        self.objective = objective
        self.state = OnPolicyState()
        self.generator = torch.Generator(run.device).manual_seed(run.config.seed)
        self.keeper = Keeper(self, eval_env, evaluation, camera, prefer_newer=True)
        spec = agent.policy.spec
        self.buffer = RolloutBuffer(
            config.rollout_steps * env.num_envs,
            None if agent.trains_encoder else spec.cond_dim,
            spec.pred_horizon,
            spec.action_dim,
            agent.config.gamma,
            agent.config.gae_lambda,
            agent.actor.num_steps,
            run.device,
        )

    def train(self) -> None:
        """To the end, from the start or from the state that the run resumes; goes back once where it diverges."""
        policy = self.agent.policy
        warn_of_few_iterations(self.run, self.config, policy.spec.act_horizon)
        if warning := policy.steps_warning(policy.spec.num_inference_steps):
            self.run.alarm(warning)
        with self.keeper.saving_when_interrupted():
            obs = None
            if self.run.resumed:
                saved = self.keeper.restore()
                self._go_back(saved)
                with fitting(self.run.dir):
                    obs = continued(self.env, saved["env"], self.run)
            else:
                distributed.broadcast_(self.agent.state_dict())
            while True:
                try:
                    self._go_on(obs)
                    break
                except Diverged as problem:
                    self._go_back(self.keeper.roll_back(problem))
                    obs = None
        if self.state.iteration and not self.state.policy_updates:
            self.run.alarm(
                f"the policy never moved: all {self.state.env_steps} env steps were critic warm-up: "
                "lower --critic_warmup_steps or raise --total_timesteps"
            )

    def snapshot(self) -> Checkpoint:
        return Checkpoint(
            policy_spec=self.agent.policy.spec,
            env_spec=self.env.spec,
            policy_state=self.agent.policy.state_dict(),
            critic_state=self.agent.critic.state_dict(),
            objective=self.objective,
        )

    def training(self) -> dict[str, Any]:
        """What a resume needs beside the snapshot."""
        return {
            "agent": self.agent.state_dict(),
            "learner": self.learner.state_dict(),
            "counters": asdict(self.state),
            "env": None if distributed.active() else self.env.state(),
        }

    def _go_on(self, obs: Obs | None) -> None:
        on_policy(
            self.agent,
            self.learner,
            self.env,
            self.env.reset(seed=self.run.config.seed + self.state.iteration) if obs is None else obs,
            self.buffer,
            self.config,
            self.run,
            state=self.state,
            generator=self.generator,
            on_eval=self._evaluate,
            on_mark=lambda state: self.keeper.mark(state.env_steps),
            on_save=lambda state: self.keeper.save_mark(),
        )

    def _go_back(self, training: dict[str, Any]) -> None:
        with fitting(self.run.dir):
            load_state_(self.agent, training["agent"], "the agent")
            self.learner.load_state_dict(training["learner"])
            self.state = OnPolicyState(**ADDED_LATER | training["counters"])

    def _evaluate(self, state: OnPolicyState) -> Metrics:
        metrics = self.keeper.evaluate(self.agent.policy, state.env_steps)
        first = self.keeper.first
        if metrics and first and state.policy_updates and self.keeper.score(metrics).is_below(first):
            self.run.alarm(
                f"{HEADLINES[self.keeper.headline]} fell below the pretrained {first.value:.2f}: "
                "lower --lr or raise --critic_warmup_steps"
            )
        return metrics


def continued(env: ChunkEnv, state: Any, run: Run) -> Obs | None:
    """Bring the envs to where they were; None, with an alarm, where that can't be and new episodes have to start.

    The envs of several processes always start new ones.
    """
    obs = None if state is None or distributed.active() else env.restore(state)
    if obs is None:
        run.alarm("the envs could not go on where they were: new episodes started")
    return obs


def warn_of_few_iterations(run: Run, config: OnPolicyConfig, act_horizon: int) -> None:
    """One iteration at 256 envs x 128 decisions x 8 steps is 262,144 env steps: a million of them are four updates."""
    per_iteration = config.num_envs * config.rollout_steps * act_horizon
    iterations = config.total_timesteps // per_iteration
    if iterations < FEW_ITERATIONS:
        run.alarm(
            f"{config.total_timesteps} env steps are only {iterations} iterations of {per_iteration}: "
            f"lower --rollout_steps or --num_envs, or raise --total_timesteps"
        )
