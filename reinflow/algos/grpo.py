"""Group-relative policy optimisation (arXiv:2402.03300) over the stochastic chain of any policy, without a critic.

    A = (R - mean R) / std R over the episodes of a group, which start from one state;   R is their discounted return
    loss = -min(ratio A, clip(ratio) A) + kl_weight KL(policy || the policy it started from)

Every decision of an episode has its advantage. Differs: decisions are whole denoising chains, whose log-ratio is scaled
as in `ppo`, and KL is the closed form in joint nats, per scored number.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.algos.advantages import mean_over
from reinflow.algos.chain_actor import MovingChain
from reinflow.algos.options import GRPOConfig
from reinflow.algos.ppo import MAX_LOG_RATIO, clipped_surrogate, mean_of, scaled_log_ratio
from reinflow.algos.setting import Setting
from reinflow.errors import UserError
from reinflow.policies.base import Policy
from reinflow.policies.chain import chain_log_prob, chain_moments, joint_kl
from reinflow.runtime import interrupts
from reinflow.types import ChunkStep, Decision, Obs, Stochastic


def group_advantages(
    returns: Float[Tensor, "n"], valid: Bool[Tensor, "n"], group: int
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """(R - mean) / std over the valid ones of every group of neighbours, and that std.

    The advantage is 0 where all of a group brought the same, and where an episode is not valid.
    """
    groups, weights = returns.unflatten(0, (-1, group)), valid.float().unflatten(0, (-1, group))
    count = weights.sum(1, keepdim=True).clamp_min(1)
    gap = weights * (groups - (weights * groups).sum(1, keepdim=True) / count)
    std = (gap.square().sum(1, keepdim=True) / count).sqrt().expand_as(gap)
    return torch.where(std > 1e-6, gap / std.clamp_min(1e-6), 0.0).flatten(), std.flatten()


class GRPO(MovingChain):
    """Plays an episode of every env and learns from how each went beside its group."""

    def __init__(self, policy: Policy, actor: Stochastic, config: GRPOConfig, setting: Setting):
        """UserError where the envs don't make whole groups."""
        super().__init__(policy, actor, config.chain)
        if setting.num_envs % config.group:
            raise UserError(f"--num_envs {setting.num_envs} is no multiple of --group {config.group}")
        self.grpo = config
        self.gamma = setting.gamma
        self.rollout_steps = setting.rollout_steps
        self.reference: Any = copy.deepcopy(self.module).requires_grad_(False)
        self.begin(0)

    @property
    def group(self) -> int:
        """Envs that start from one state."""
        return self.grpo.group

    @property
    def full(self) -> bool:
        """Whether all decisions are there, or every env has ended its episode."""
        over = self.playing is not None and not bool(self.playing.any())
        return over or len(self.rows) >= self.rollout_steps

    def begin(self, env_steps: int) -> bool:
        """Forget the last rollout; every iteration trains the policy."""
        self.rows: list[dict[str, Tensor]] = []
        self.playing: Bool[Tensor, "n"] | None = None
        """whose first episode is not over"""
        self.valid: Bool[Tensor, "n"] | None = None
        """whose episode has an outcome: none of its decisions broke"""
        self.returns: Tensor | float = 0.0
        self.discount: Tensor | float = 1.0
        return True

    @torch.no_grad()
    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """The end of a drawn chain."""
        cond = self.policy.encode(obs)
        chain = self.chain(cond, generator)
        return Decision(self.policy.to_action(chain.chunk), memory=(cond, chain))

    def store(self, decision: Decision, step: ChunkStep) -> None:
        """Count what a decision brought, in the first episode of every env."""
        cond, chain = decision.memory
        playing = torch.ones_like(step.terminated) if self.playing is None else self.playing
        valid = torch.ones_like(step.terminated) if self.valid is None else self.valid
        self.valid = valid & ~(playing & step.broken)
        self.rows.append({"cond": cond, "actions": chain.states, "log_probs": chain.log_prob, "valid": playing.float()})
        counts = playing & ~step.broken
        self.returns = self.returns + torch.where(counts, self.discount * step.reward, 0.0)
        self.discount = self.discount * self.gamma**step.executed
        self.playing = playing & ~(step.ended | step.broken)

    def finish(self, obs: Obs) -> Tensor:
        """Compare the episodes of each group; gives the number of decisions that belong to broken ones."""
        assert isinstance(self.returns, Tensor)
        assert self.valid is not None
        advantage, std = group_advantages(self.returns, self.valid, self.group)
        self.group_std = std.mean()
        kept = self.valid.float()
        for row in self.rows:
            row["advantages"] = advantage
            row["valid"] = row["valid"] * kept
        return torch.where(self.valid, 0, len(self.rows)).sum()

    def update(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Gradient steps on the rollout."""
        data = {name: torch.cat([row[name] for row in self.rows]) for name in self.rows[0]}
        chosen = data["valid"].nonzero().flatten()
        data = {name: column[chosen] for name, column in data.items()}
        steps: list[dict[str, Tensor]] = []
        for _ in range(self.grpo.epochs):
            order = torch.randperm(len(chosen), generator=generator, device=chosen.device)
            for index in interrupts.between(order.split(self.grpo.minibatch_size)):
                steps.append(self.step({name: column[index] for name, column in data.items()}))
        mean = {f"losses/{name}": value for name, value in mean_of(steps).items()}
        last = {name: steps[-1][name] for name in steps[-1] if "skipped" in name}
        guarded = {f"losses/{name}": value for name, value in last.items()}
        return mean | guarded | {"losses/group_std": self.group_std}

    def step(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """One gradient step on a minibatch."""
        means, stds = chain_moments(self.actor, rows["actions"], rows["cond"])
        log_prob = chain_log_prob(rows["actions"], means, stds, self.scored)
        log_ratio = scaled_log_ratio(log_prob, rows["log_probs"], self.num_scored, "sqrt")
        ratio = log_ratio.clamp_max(MAX_LOG_RATIO).exp()
        surrogate = clipped_surrogate(ratio, rows["advantages"], self.grpo.clip_ratio)
        with torch.no_grad():
            old = chain_moments(self.reference, rows["actions"], rows["cond"])
        drift = mean_over(joint_kl(means, stds, *old, self.scored), None)
        metrics = self.descend(surrogate + self.grpo.kl_weight * drift / self.num_scored)
        return {name.removeprefix("losses/"): value for name, value in metrics.items()} | {
            "policy": surrogate.detach(),
            "drift": drift.detach(),
            "clip_fraction": ((ratio.detach() - 1).abs() > self.grpo.clip_ratio).float().mean(),
        }

    def status(self, values: dict[str, float]) -> dict[str, Any]:
        """What a monitor shows of an iteration."""
        return {"phase": "grpo", "kl": None, "clip_fraction": values.get("losses/clip_fraction")}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Nothing beside the policy."""
        return {}

    @staticmethod
    def worries(values: dict[str, float]) -> list[str]:
        """Whether groups tell episodes apart."""
        if values.get("losses/group_std", 1.0) < 1e-6:
            return ["all episodes of a group brought the same, so nothing is learned: raise --max_std or --group"]
        return []

    def state_dict(self) -> dict[str, Any]:
        """As of every `MovingChain`, and the policy that it started from."""
        return super().state_dict() | {"reference": self.reference.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.reference.load_state_dict(state["reference"])
