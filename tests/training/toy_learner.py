"""A learner for the off-policy loop: Stage 2's weighted regression that acts, with Gaussian exploration."""

from __future__ import annotations

from typing import Any

import torch

from reinflow.algos.awr import AdvantageWeightedRegression
from reinflow.algos.config import AWRConfig, BCConfig, CriticConfig
from reinflow.data.replay import ReplayBuffer
from reinflow.envs import EnvConfig, make_env
from reinflow.policies import PolicySpec, build_policy
from reinflow.run.run import Run
from reinflow.training.config import EvalConfig, OffPolicyConfig
from reinflow.training.off_policy import OffPolicy
from reinflow.training.trainer import Trainer
from reinflow.types import Decision, Obs

GAMMA = 0.97
SPEC = PolicySpec.of(
    family="gaussian", net="mlp", obs_horizon=1, act_horizon=4, pred_horizon=4, state_dim=3, action_dim=2,
    num_inference_steps=1, mlp_hidden_dim=32, mlp_depth=1, diffusion_step_embed_dim=8,
)  # fmt: skip


class Explorer(AdvantageWeightedRegression):
    """Actor and critics of Stage 2 on what it does itself."""

    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """The policy's own chunk, moved by a constant for each chunk and by noise for each step."""
        chunk = self.policy.act(obs, generator)
        constant = torch.randn(chunk[:, :1].shape, generator=generator)
        noise = torch.randn(chunk.shape, generator=generator)
        return Decision((chunk + 0.5 * constant + 0.2 * noise).clamp(-1, 1))

    def start_at_(self, level: torch.Tensor) -> None:
        """Qs and V."""
        self.critics.start_at_(level)

    @torch.no_grad()
    def judged(self, obs: Obs, actions: torch.Tensor) -> torch.Tensor:
        """Mean of the target Qs."""
        chunk = self.executed(self.policy.normalize_chunk(actions))
        return self.critics.target_q(self.policy.encode(obs), chunk).mean(0)

    def value(self, obs: Obs) -> torch.Tensor:
        """Of what the policy does without noise."""
        return self.judged(obs, self.policy.act(obs))


def explorer(total_updates: int) -> Explorer:
    """Untrained; its normalisers are those of the toy's whole range."""
    torch.manual_seed(0)
    policy = build_policy(SPEC)
    policy.fit_normalizers_(2 * torch.rand(500, 3) - 1, 2 * torch.rand(500, 2) - 1)
    critics = CriticConfig(gamma=GAMMA, num_qs=2, num_min_qs=2, q_hidden_dim=64, tau=0.02, lr_critic=1e-3)
    config = BCConfig(lr=1e-3, ema_decay=0.98, lr_warmup=1)
    return Explorer(policy, config, AWRConfig(beta=3.0), critics, total_updates)


def trainer(run: Run, episodes: int = 50, **config: Any) -> Trainer:
    """A whole off-policy run on the toy."""
    loop_config = OffPolicyConfig(**config)
    horizons = {"act_horizon": SPEC.act_horizon, "obs_horizon": SPEC.obs_horizon, "gamma": GAMMA}
    env, eval_env = (make_env(EnvConfig("Toy-v0"), count, **horizons) for count in (loop_config.num_envs, episodes))
    loop = OffPolicy(explorer(100_000), env, ReplayBuffer(20_000, GAMMA), loop_config, run, run.generator())
    return Trainer(loop, eval_env, EvalConfig(num_eval_envs=episodes, num_eval_episodes=episodes))
