"""PPO (Schulman et al., arXiv:1707.06347) over a denoising chain (DPPO, arXiv:2409.00588; ReinFlow, arXiv:2505.22094).

Differs: the log-ratio of hundreds of Gaussians is scaled by their number to the power alpha, KL is the closed form in
joint nats, and the critic has an optimiser of its own, so that warm-up leaves the actor's optimiser untouched.
"""

from __future__ import annotations

from collections import defaultdict
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.critic import PrivilegedValueNetwork
from reinflow.algos.actor_critic import ActorCritic
from reinflow.algos.advantages import explained_variance, mean_over, normalized
from reinflow.algos.anchor import Anchor
from reinflow.algos.config import PPOConfig
from reinflow.algos.guard import StepGuard
from reinflow.algos.rollout import RolloutBuffer, Rows
from reinflow.policies.chain import chain_entropy, chain_log_prob, chain_moments, joint_kl
from reinflow.runtime import distributed, interrupts
from reinflow.runtime.acceleration import replayed
from reinflow.runtime.config import AccelerationConfig
from reinflow.runtime.trees import mapped

ALPHA = {"sum": 0.0, "sqrt": 0.5, "mean": 1.0}
MAX_LOG_RATIO = 20.0
"""guard against overflow of exp alone; far outside of any clip range"""


def scaled_log_ratio(
    log_prob: Float[Tensor, "b"], old_log_prob: Float[Tensor, "b"], num_scored: int, reduction: str
) -> Float[Tensor, "b"]:
    """(log pi_new - log pi_old) / D**alpha."""
    return (log_prob - old_log_prob) / num_scored ** ALPHA[reduction]


def clipped_surrogate(
    ratio: Float[Tensor, "b"],
    advantages: Float[Tensor, "b"],
    clip_ratio: float,
    valid: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, ""]:
    """PPO's pessimistic objective, as a loss (eq. 7), over the rows where `valid` is 1."""
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    return -mean_over(torch.min(ratio * advantages, clipped * advantages), valid)


def value_loss(
    agent: ActorCritic,
    seen: Float[Tensor, "b p"],
    returns: Float[Tensor, "b"],
    valid: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, ""]:
    """Squared error, in squared units of the returns; it moves the critic alone."""
    return mean_over((agent.critic(seen.detach()) - returns).square(), valid)


def weighted_value_loss(agent: ActorCritic, loss: Float[Tensor, ""], value_coef: float) -> Float[Tensor, ""]:
    """Its part of the loss that is minimised, whatever the unit of the rewards."""
    return value_coef * loss / agent.critic.unit.square()


def ppo_loss(agent: ActorCritic, config: PPOConfig, cond: Float[Tensor, "b z"], rows: Rows) -> dict[str, Tensor]:
    """`loss` and its parts, over those rows of a rollout whose `valid` is 1 (all where they have none).

    `approx_kl` is in joint nats; without the old `means` and `stds` it is estimated from the log-ratios.
    """
    actions, old_log_prob, valid = rows["actions"], rows["log_probs"], rows.get("valid")
    means, stds = chain_moments(agent.actor, actions, cond)
    log_prob = chain_log_prob(actions, means, stds, agent.scored)
    log_ratio = scaled_log_ratio(log_prob, old_log_prob, agent.num_scored, config.logprob_reduction)
    ratio = log_ratio.clamp_max(MAX_LOG_RATIO).exp()
    policy_loss = clipped_surrogate(ratio, rows["advantages"], config.clip_ratio, valid)
    critic_loss = value_loss(agent, rows.get("critic_obs", cond), rows["returns"], valid)
    entropy = mean_over(chain_entropy(stds, agent.scored), valid)
    loss = policy_loss + weighted_value_loss(agent, critic_loss, config.value_coef) - config.entropy_coef * entropy
    with torch.no_grad():
        if "means" in rows and "stds" in rows:
            kl = joint_kl(rows["means"], rows["stds"], means, stds, agent.scored)
        else:
            difference = log_prob - old_log_prob
            kl = difference.exp() - 1 - difference
        deviation = (ratio - 1).abs() if valid is None else (ratio - 1).abs() * valid
    return {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": critic_loss,
        "entropy_loss": -entropy,
        "approx_kl": mean_over(kl, valid),
        "clip_fraction": mean_over((deviation > config.clip_ratio).float(), valid),
        "ratio_deviation": deviation.max(),
    }


class PPO:
    """Optimises an `ActorCritic` on one rollout at a time."""

    def __init__(self, agent: ActorCritic, config: PPOConfig, acceleration: AccelerationConfig | None = None):
        self.agent = agent
        self.config = config
        self.velocity_parameters = list(agent.actor.velocity_parameters())
        if agent.trains_encoder:
            self.velocity_parameters += list(agent.policy.encoder.parameters())
        self.noise_parameters = list(agent.actor.noise_parameters())
        self.critic_parameters = list(agent.critic.parameters())
        self.anchor = Anchor(agent.policy, config.w2_coef, config.w2_decay_steps) if config.w2_coef else None
        groups = [
            {"params": self.velocity_parameters, "lr": config.lr},
            {"params": self.noise_parameters, "lr": config.lr_noise},
        ]
        kind: dict[str, Any] = {"eps": 1e-5, "fused": True, "capturable": agent.policy.device.type == "cuda"}
        self.actor_optimizer = torch.optim.Adam(groups, **kind)
        self.critic_optimizer = torch.optim.Adam(self.critic_parameters, lr=config.lr_critic, **kind)
        self.guard = StepGuard()
        # several processes wait for each other in the middle of a step, which a graph can't hold
        self.acceleration = AccelerationConfig() if distributed.active() or acceleration is None else acceleration
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        self.step = replayed(self.descend, self.acceleration, self.agent.policy.device)
        self.step_critic = replayed(self.descend_critic, self.acceleration, self.agent.policy.device)

    def update(
        self, buffer: RolloutBuffer, generator: torch.Generator | None = None, *, critic_only: bool = False
    ) -> dict[str, Tensor]:
        """All epochs over `buffer`; returns metrics as tensors. With `critic_only` the actor is not even evaluated."""
        data, kept = buffer.data, buffer.kept()
        if isinstance(self.agent.critic, PrivilegedValueNetwork):
            self.agent.critic.fit_once_(data["critic_obs"][kept], distributed.row_moments)
        metrics = {
            "explained_variance": explained_variance(data["value"][kept], data["returns"][kept]),
            "advantage_std": distributed.moments(data["advantages"][kept])[1],
            "value_mean": data["value"][kept].mean(),
            "value_scale": self.agent.critic.scale.clone(),
            "action_clip_fraction": (data["actions"][:, :, -1][kept].abs() > 1).float().mean(),
        }
        if critic_only:
            metrics |= mean_of(self.critic_epochs(buffer, generator, self.config.ppo_epochs))
            return metrics | self.guard.metrics()
        if "stds" in data:
            metrics |= std_percentiles(data["stds"][kept])
        if self.config.normalize_advantages:
            data["advantages"] = normalized(data["advantages"], data["valid"])
        steps: list[dict[str, Tensor]] = []
        epochs = 0
        for _ in range(self.config.ppo_epochs):
            minibatches = buffer.minibatches(self.config.minibatch_size, generator, overwrite=True)
            epoch = [self.step(rows) for rows in interrupts.between(minibatches)]
            steps += epoch
            epochs += 1
            if self.config.target_kl is not None and self.mean_kl(epoch) > self.config.target_kl:
                break
        metrics |= mean_of(steps + self.critic_epochs(buffer, generator, self.config.ppo_epochs - epochs))
        metrics["ratio_deviation"] = distributed.largest(steps[0]["ratio_deviation"])
        metrics["final_kl"] = mean_of(epoch)["approx_kl"]
        metrics["epochs"] = torch.tensor(float(epochs))
        metrics |= self.guard.metrics()
        self.actor_optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        return metrics

    def mean_kl(self, epoch: list[dict[str, Tensor]]) -> Float[Tensor, ""]:
        """Of all processes, so that they stop together."""
        return distributed.mean(mean_of(epoch)["approx_kl"])

    def descend(self, rows: Rows) -> dict[str, Tensor]:
        """A gradient step of actor and critic on a minibatch, on the device alone; `step` may replay it as a graph."""
        self.actor_optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        losses = self.add_gradients(rows)
        loss = losses.pop("loss")
        distributed.average_gradients_(self.velocity_parameters + self.noise_parameters + self.critic_parameters)
        limit = self.config.max_grad_norm
        noise_gradients = [p.grad for p in self.noise_parameters if p.grad is not None]
        losses["grad_norm_noise"] = nn.utils.get_total_norm(noise_gradients)
        losses["grad_norm_actor"] = nn.utils.clip_grad_norm_(self.velocity_parameters + self.noise_parameters, limit)
        losses["grad_norm_critic"] = nn.utils.clip_grad_norm_(self.critic_parameters, limit)
        self.guard.step(
            loss,
            [
                (self.actor_optimizer, losses["grad_norm_actor"]),
                (self.critic_optimizer, losses["grad_norm_critic"]),
            ],
        )
        return losses

    def add_gradients(self, rows: Rows) -> dict[str, Tensor]:
        """Gradients of the loss and its parts, over micro-batches whose weights are their shares of the valid rows."""
        size = self.config.micro_batch_size
        if size is None or size >= len(rows["log_probs"]):
            losses = self.losses(rows)
            losses["loss"].backward()
            return detached(losses)
        parts: list[dict[str, Tensor]] = []
        total = rows["valid"].sum().clamp_min(1)
        for start in range(0, len(rows["log_probs"]), size):
            piece = {name: mapped(entry, itemgetter(slice(start, start + size))) for name, entry in rows.items()}
            share = piece["valid"].sum() / total
            losses = self.losses(piece)
            (losses["loss"] * share).backward()
            parts.append({name: v if name == "ratio_deviation" else v * share for name, v in detached(losses).items()})
        columns = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return {name: column.amax() if name == "ratio_deviation" else column.sum() for name, column in columns.items()}

    def losses(self, rows: Rows) -> dict[str, Tensor]:
        """`ppo_loss` of rows, and the distance to the policy before fine-tuning where that counts."""
        cond = self.agent.condition(rows["obs"])
        losses = ppo_loss(self.agent, self.config, cond, rows)
        if self.anchor is not None:
            x_0, steps = rows["actions"][:, 0], self.agent.actor.num_steps
            distance = self.anchor.distance(self.agent.policy, cond, rows["obs"], x_0, steps)
            losses["w2"] = mean_over(distance, rows.get("valid"))
            losses["loss"] = losses["loss"] + self.anchor.weight * losses["w2"]
        return losses

    def critic_epochs(
        self, buffer: RolloutBuffer, generator: torch.Generator | None, epochs: int
    ) -> list[dict[str, Tensor]]:
        """The same passes for the value network alone."""
        steps = []
        names = ("critic_obs" if "critic_obs" in buffer.data else "obs", "returns", "valid")
        for _ in range(epochs):
            minibatches = buffer.minibatches(self.config.minibatch_size, generator, names, overwrite=True)
            for rows in interrupts.between(minibatches):
                steps.append(self.step_critic(*(rows[name] for name in names)))
        return steps

    def descend_critic(self, seen: Tensor, returns: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """A gradient step of the critic alone, on the device alone; `step_critic` may replay it as a graph."""
        loss = value_loss(self.agent, seen, returns, valid)
        self.critic_optimizer.zero_grad()
        weighted_value_loss(self.agent, loss, self.config.value_coef).backward()
        distributed.average_gradients_(self.critic_parameters)
        norm = nn.utils.clip_grad_norm_(self.critic_parameters, self.config.max_grad_norm)
        self.guard.step(loss, [(self.critic_optimizer, norm)])
        return {"value_loss": loss.detach(), "grad_norm_critic": norm}

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers, their tensors live, and the policy before fine-tuning where its distance counts.

        The agent's weights are saved elsewhere.
        """
        anchor = {} if self.anchor is None else {"anchor": self.anchor.state_dict()}
        return {"actor": self.actor_optimizer.state_dict(), "critic": self.critic_optimizer.state_dict(), **anchor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; captured graphs and the count of skipped steps are dropped."""
        self.actor_optimizer.load_state_dict(state["actor"])
        self.critic_optimizer.load_state_dict(state["critic"])
        if self.anchor is not None:
            self.anchor.load_state_dict(state["anchor"])
        self.guard.reset()
        self._forget_graphs()  # the moments lie elsewhere now


def detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without their gradients' history, as metrics are kept."""
    return {name: value.detach() for name, value in values.items()}


def std_percentiles(stds: Float[Tensor, "..."], most: int = 100_000) -> dict[str, Tensor]:
    """5th, 50th and 95th percentile of the exploration noise, over an even selection of at most about `most` values."""
    values = stds.flatten()[:: max(stds.numel() // most, 1)]
    levels = values.quantile(torch.tensor([0.05, 0.5, 0.95], device=values.device))
    return dict(zip(("noise_std_p05", "noise_std_p50", "noise_std_p95"), levels, strict=True))


def mean_of(steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each metric over gradient steps."""
    columns = defaultdict(list)
    for step in steps:
        for name, value in step.items():
            columns[name].append(value)
    return {name: torch.stack(values).mean() for name, values in columns.items()}
