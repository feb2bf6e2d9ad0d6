"""PPO over the chain: the loss by hand, what each phase may touch, and that it improves a policy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch

from nets.critic import PrivilegedValueNetwork
from reinflow.agent import ReinFlowAgent
from reinflow.algos.ppo import PPO, clipped_surrogate, scaled_log_ratio, std_percentiles
from reinflow.algos.rollout import RolloutBuffer
from reinflow.algos.schedules import NoiseConfig
from reinflow.policies import FAMILIES

Make = Callable[..., ReinFlowAgent]
Fill = Callable[..., RolloutBuffer]


def actor_state(agent: ReinFlowAgent) -> list[torch.Tensor]:
    return [p.detach().clone() for p in (*agent.actor.parameters(), *agent.policy.parameters())]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def loss_of(agent: ReinFlowAgent, buffer: RolloutBuffer, moments: bool = True) -> dict[str, torch.Tensor]:
    rows = buffer.flat()
    return agent.compute_ppo_loss(
        rows["obs"],
        rows["actions"],
        rows["log_probs"],
        rows["advantages"],
        rows["returns"],
        **({"means": rows["means"], "stds": rows["stds"]} if moments else {}),
    )


def test_clipping_by_hand():
    # min(1.3, 1.2) + min(.7, .8) + min(-1.3, -1.2) + min(-.7, -.8) = 1.2 + .7 - 1.3 - .8 = -.2; as a loss .05
    ratio = torch.tensor([1.3, 0.7, 1.3, 0.7])
    loss = clipped_surrogate(ratio, torch.tensor([1.0, 1.0, -1.0, -1.0]), clip_ratio=0.2)
    torch.testing.assert_close(loss, torch.tensor(0.05))


def test_only_unclipped_rows_have_gradients():
    # d loss / d ratio = -A/4, except where the clipped branch is the minimum (rows 0 and 3)
    ratio = torch.tensor([1.3, 0.7, 1.3, 0.7], requires_grad=True)
    clipped_surrogate(ratio, torch.tensor([1.0, 1.0, -1.0, -1.0]), clip_ratio=0.2).backward()
    torch.testing.assert_close(ratio.grad, torch.tensor([0.0, -0.25, 0.25, 0.0]))


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 8.0), ("sqrt", 2.0), ("mean", 0.5)])
def test_the_log_ratio_of_sixteen_gaussians_is_divided_by_1_4_or_16(reduction, expected):
    ratio = scaled_log_ratio(torch.tensor([-2.0]), torch.tensor([-10.0]), 16, reduction)
    torch.testing.assert_close(ratio, torch.tensor([expected]))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"scored": "feeds"}, (3 * 8 + 4) * 3),
        ({"scored": "executed"}, 4 * 4 * 3),
        ({"scored": "all"}, 4 * 8 * 3),
        ({"scored": "all", "count_initial_noise": True}, (4 + 1) * 8 * 3),
    ],
)
def test_scored_gaussians_of_four_steps_eight_positions_of_which_four_are_executed_and_three_dims(
    make_agent: Make, options, count
):
    assert make_agent(**options).num_scored == count


def test_a_constant_action_dim_does_not_count(make_agent: Make):
    agent = make_agent()
    agent.policy.action_normalizer.scale[1] = agent.policy.action_normalizer.floor
    agent.score_(agent.config.scored, agent.config.count_initial_noise)
    assert agent.num_scored == (3 * 8 + 4) * 2
    assert not agent.scored[:, :, 1].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_the_ratio_is_one_on_the_first_minibatch_of_every_update(make_agent: Make, fill: Fill, family, num_steps):
    agent = make_agent(family, num_steps, lr=1e-3, lr_noise=1e-2, logprob_reduction="sqrt")
    learner = PPO(agent, agent.config)
    for env_steps in (0, 200_000, 400_000):
        agent.update_noise_schedule(step=env_steps)
        metrics = learner.update(fill(agent))
        assert metrics["ratio_deviation"] < 1e-4
        assert metrics["approx_kl"] > 1e-3


def test_the_ratio_is_one_with_a_plain_sum_too(make_agent: Make, fill: Fill):
    noise = NoiseConfig(min_noise_std=0.01, max_noise_std=0.3, noise_scale="total")
    agent = make_agent(num_steps=8, noise=noise, logprob_reduction="sum")
    assert PPO(agent, agent.config).update(fill(agent))["ratio_deviation"] < 1e-3


def test_the_loss_is_the_sum_that_the_guide_states(make_agent: Make, fill: Fill):
    agent = make_agent(value_coef=0.5, entropy_coef=0.1)
    losses = loss_of(agent, fill(agent))
    total = losses["policy_loss"] + 0.5 * losses["value_loss"] + 0.1 * losses["entropy_loss"]
    torch.testing.assert_close(losses["loss"], total)


@pytest.mark.parametrize("moments", [True, False])
def test_kl_is_zero_before_and_positive_after_an_update_from_moments_or_from_log_ratios(
    make_agent: Make, fill: Fill, moments
):
    agent = make_agent(lr=1e-4)
    buffer = fill(agent)
    assert abs(loss_of(agent, buffer, moments)["approx_kl"].item()) < 1e-4
    PPO(agent, agent.config).update(buffer)
    assert loss_of(agent, buffer, moments)["approx_kl"] > 1e-4


def test_a_huge_log_ratio_stays_finite(make_agent: Make, fill: Fill):
    agent = make_agent(logprob_reduction="sum")
    buffer = fill(agent)
    buffer.data["log_probs"] -= 1000.0
    losses = loss_of(agent, buffer)
    losses["loss"].backward()
    assert bool(losses["loss"].isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in agent.parameters() if p.grad is not None)


def test_actor_and_critic_never_get_each_others_gradients(make_agent: Make, fill: Fill):
    agent = make_agent()
    losses = loss_of(agent, fill(agent))
    losses["policy_loss"].backward(retain_graph=True)
    assert all(p.grad is None for p in agent.critic.parameters())
    agent.zero_grad()
    losses["value_loss"].backward()
    assert all(p.grad is None for p in agent.actor.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_critic_warm_up_leaves_the_actor_and_its_optimiser_bit_identical_and_never_evaluates_it(
    make_agent: Make, fill: Fill, family, monkeypatch
):
    agent = make_agent(family)
    learner = PPO(agent, agent.config)
    learner.update(fill(agent))
    buffer = fill(agent)
    actor, optimizer = actor_state(agent), copy.deepcopy(learner.actor_optimizer.state_dict())
    critic = [p.detach().clone() for p in agent.critic.parameters()]

    def forbidden(*_: object) -> None:
        raise AssertionError("the actor was evaluated")

    for name in ("kernel", "steps"):
        monkeypatch.setattr(agent.actor, name, forbidden)
    metrics = learner.update(buffer, critic_only=True)
    assert same(actor, actor_state(agent))
    for old, new in zip(
        optimizer["state"].values(), learner.actor_optimizer.state_dict()["state"].values(), strict=True
    ):
        assert same(list(old.values()), list(new.values()))
    assert not same(critic, list(agent.critic.parameters()))
    assert "policy_loss" not in metrics


@pytest.mark.parametrize("family", FAMILIES)
def test_the_noise_learns_at_every_update_and_stays_strictly_inside_its_bounds(make_agent: Make, fill: Fill, family):
    noise = NoiseConfig(min_noise_std=0.05, max_noise_std=0.3, noise_decay_type="constant")
    agent = make_agent(family, num_steps=4, noise=noise, lr_noise=1e-2)
    learner = PPO(agent, agent.config)
    for _ in range(5):
        buffer = fill(agent)
        learned = buffer.data["stds"][:, :, -1]  # of the last step, which has no other noise
        assert learned.min() > 0.05
        assert learned.max() < 0.3
        assert learner.update(buffer)["grad_norm_noise"] > 1e-4
    assert buffer.data["stds"].std() > 0


def test_a_kl_stop_ends_the_actors_epochs_lets_the_critic_finish_and_leaves_no_gradients(make_agent: Make, fill: Fill):
    agent = make_agent(ppo_epochs=4, target_kl=1e-9)
    learner = PPO(agent, agent.config)
    metrics = learner.update(fill(agent))
    assert metrics["epochs"] == 1
    counts = [
        {int(state["step"]) for state in optimizer.state_dict()["state"].values()}
        for optimizer in (learner.actor_optimizer, learner.critic_optimizer)
    ]
    assert counts == [{3}, {12}]  # 48 rows are 3 minibatches of 16; one epoch against four
    assert all(p.grad is None for p in agent.parameters())


def test_no_kl_limit_means_all_epochs(make_agent: Make, fill: Fill):
    agent = make_agent(ppo_epochs=3, target_kl=None, lr=1e-2)
    assert PPO(agent, agent.config).update(fill(agent))["epochs"] == 3


@pytest.mark.parametrize("critic_only", [True, False])
def test_metrics_are_finite_scalar_tensors(make_agent: Make, fill: Fill, critic_only):
    agent = make_agent()
    metrics = PPO(agent, agent.config).update(fill(agent), critic_only=critic_only)
    assert all(value.shape == () and bool(value.isfinite()) for value in metrics.values())


def test_a_buffer_without_moments_still_trains(make_agent: Make, fill: Fill):
    agent = make_agent()
    metrics = PPO(agent, agent.config).update(fill(agent, with_moments=False))
    assert metrics["ratio_deviation"] < 1e-4
    assert 0 <= metrics["approx_kl"] < 100


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_normalised_over_the_whole_rollout_when_asked(make_agent: Make, fill: Fill, normalize):
    agent = make_agent(normalize_advantages=normalize)
    buffer = fill(agent)
    before = buffer.data["advantages"].std().item()
    PPO(agent, agent.config).update(buffer)
    assert buffer.data["advantages"].std().item() == pytest.approx(1.0 if normalize else before, abs=1e-4)


def test_std_percentiles_of_a_ramp():
    levels = std_percentiles(torch.linspace(0, 1, 101).reshape(1, 101, 1), torch.ones(1, 101).bool())
    assert [round(level.item(), 4) for level in levels.values()] == [0.05, 0.5, 0.95]


def test_restored_optimisers_continue_bit_identically(make_agent: Make, fill: Fill):
    agent = make_agent(lr=1e-3)
    learner = PPO(agent, agent.config)
    learner.update(fill(agent))
    twin = make_agent(lr=1e-3)
    twin.load_state_dict(agent.state_dict())
    restored = PPO(twin, twin.config)
    restored.load_state_dict(copy.deepcopy(learner.state_dict()))
    buffer = fill(agent)
    for one in (learner, restored):
        one.update(copy.deepcopy(buffer), torch.Generator().manual_seed(3))
    assert same(actor_state(agent), actor_state(twin))
    assert same(list(agent.critic.parameters()), list(twin.critic.parameters()))


@pytest.mark.parametrize("family", FAMILIES)
def test_ppo_over_the_chain_moves_a_bandits_actions_to_its_target(make_agent: Make, family):
    # one decision per episode, reward -mean (action - .5)^2; an untrained policy acts far from .5
    agent = make_agent(family, 2, lr=3e-3, lr_critic=1e-2, minibatch_size=128, clip_ratio=0.2, gamma=1.0)
    learner = PPO(agent, agent.config)
    spec, envs = agent.policy.spec, 128
    cond = agent.encode({"state": torch.ones(envs, spec.obs_horizon, spec.state_dim)})
    noises = agent.policy.initial_noise(envs)
    always = torch.ones(envs, dtype=torch.bool)

    def reward(chunk: torch.Tensor) -> torch.Tensor:
        return -(chunk[:, spec.executed] - 0.5).square().mean((1, 2))

    def deterministic_reward() -> float:
        with torch.no_grad():
            return reward(agent.policy.sample(cond, noises, 2)).mean().item()

    before = deterministic_reward()
    for _ in range(40):
        buffer = RolloutBuffer(
            2 * envs, spec.cond_dim, spec.pred_horizon, spec.action_dim, 1.0, 0.9, agent.actor.num_steps
        )
        while not buffer.full:
            chain = agent.get_action(cond)
            buffer.add(cond, chain.states, reward(chain.chunk), agent.get_value(cond), chain.log_prob, always)
        buffer.compute_returns_and_advantages(torch.zeros(envs), always)
        learner.update(buffer)
    assert deterministic_reward() > 0.6 * before  # rewards are negative: less than 60 % of the error is left


@pytest.mark.parametrize("micro", [1, 5, 16, 100])
def test_micro_batches_give_the_gradient_and_the_metrics_of_the_whole_minibatch(make_agent: Make, fill: Fill, micro):
    whole_agent = make_agent("shortcut")
    agent = copy.deepcopy(whole_agent)
    buffer = fill(whole_agent)
    buffer.data["valid"].flatten()[::3] = 0.0
    rows = buffer.flat()
    learners = [
        PPO(whole_agent, whole_agent.config),
        PPO(agent, dataclasses.replace(agent.config, micro_batch_size=micro)),
    ]
    losses = [learner.add_gradients(rows) for learner in learners]
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-5, atol=1e-6)
    for one, other in zip(whole_agent.parameters(), agent.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_metrics_of_an_update_leave_out_what_is_not_valid(make_agent: Make, fill: Fill):
    agent = make_agent()
    buffer = fill(agent)
    left_out = torch.zeros_like(buffer.data["valid"], dtype=torch.bool)
    left_out[2, 1:3] = left_out[5, 0] = True
    for name, value in (("valid", 0.0), ("value", 1e4), ("stds", 1e4), ("returns", -1e4), ("actions", 1e4)):
        buffer.data[name][left_out] = value
    data = {name: entry[~left_out].double() for name, entry in buffer.data.items()}
    metrics = PPO(agent, agent.config).update(buffer, critic_only=True)
    explained = 1 - (data["returns"] - data["value"]).var() / data["returns"].var()
    assert metrics["explained_variance"].item() == pytest.approx(explained.item(), rel=1e-4)
    assert metrics["value_mean"].item() == pytest.approx(data["value"].mean().item(), rel=1e-4)
    assert metrics["advantage_std"].item() == pytest.approx(data["advantages"].std().item(), rel=1e-4)
    clipped = (data["actions"][:, -1].abs() > 1).double().mean()
    assert metrics["action_clip_fraction"].item() == pytest.approx(clipped.item(), rel=1e-4)


def test_a_decision_without_outcome_is_no_part_of_the_noise_that_is_shown(make_agent: Make, fill: Fill):
    agent = make_agent()
    buffer = fill(agent)
    buffer.data["valid"][1] = 0.0
    buffer.data["stds"][1] = 1e4
    assert PPO(agent, agent.config).update(buffer)["noise_std_p95"] < 10


def test_a_critic_of_the_full_state_is_normalised_by_usable_decisions_alone(make_agent: Make, fill: Fill):
    agent = make_agent(ppo_epochs=1)
    buffer = fill(agent)
    agent.critic = PrivilegedValueNetwork(2)
    seen = torch.rand(*buffer.data["valid"].shape, 2)
    buffer.data["valid"][3] = 0.0
    buffer.data["critic_obs"] = torch.where(buffer.data["valid"][..., None] > 0, seen, 1e6)
    PPO(agent, agent.config).update(buffer, critic_only=True)
    kept = seen[buffer.data["valid"] > 0]
    torch.testing.assert_close(agent.critic.normalizer.shift, kept.mean(0))
