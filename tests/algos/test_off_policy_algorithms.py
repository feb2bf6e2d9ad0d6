"""Targets, weights and losses of the off-policy algorithms by hand, and what each step may move."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from reinflow.algorithms import ONLINE
from reinflow.algos.dql import normalized_ascent
from reinflow.algos.idql import expectile_weights
from reinflow.algos.ogpo import agreed_advantage
from reinflow.algos.options import QConfig
from reinflow.algos.sac import demonstrated_loss, target_entropy
from reinflow.algos.setting import Setting
from reinflow.data.chunks import TransitionBatch
from reinflow.data.replay import Mixture, ReplayBuffer
from reinflow.envs.synthetic import SyntheticEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.errors import UserError
from reinflow.flags import with_flags
from reinflow.policies import build_policy
from reinflow.runtime.trees import copied, split
from reinflow.training.config import OffPolicyConfig
from tests.algos.test_image_agent import FRAMES, IMAGE, NET

GAMMA = 0.9
SMALL = {"num_qs": 3, "num_min_qs": 2, "q_hidden_dim": 16}


def batch(rows: int = 12, horizon: int = 8, demonstrated: bool | None = None) -> TransitionBatch:
    """Of the policies of conftest.py: two frames of 5 numbers, chunks of 8 x 3."""
    flags = torch.arange(rows) % 4 == 0
    return TransitionBatch(
        obs={"state": torch.randn(rows, 2, 5)},
        chunk=2 * torch.rand(rows, horizon, 3) - 1,
        reward=torch.rand(rows),
        discount=torch.full((rows,), GAMMA**4),
        next_obs={"state": torch.randn(rows, 2, 5)},
        terminated=flags,
        truncated=~flags & (torch.arange(rows) % 5 == 0),
        demonstrated=None if demonstrated is None else torch.full((rows,), demonstrated),
    )


def learner(policy: Any, algorithm: str, **options: Any) -> Any:
    entry = ONLINE[algorithm]
    return entry.build(policy, with_flags(entry.config(), {**SMALL, **options}), Setting(GAMMA))


@pytest.mark.parametrize("algorithm", [name for name, one in ONLINE.items() if issubclass(one.loop, OffPolicyConfig)])
def test_a_learner_goes_on_from_its_state_to_the_bit(make_policy, algorithm):
    small = {"critic_updates": 2, "states": 4, "group": 2} if algorithm == "ogpo" else {}
    family = "ddpm" if algorithm == "qsm" else "shortcut"
    whole, again = (learner(make_policy(family), algorithm, **small) for _ in range(2))
    data = [batch(demonstrated=True) for _ in range(4)]
    for rows in data[:2]:
        whole.update(rows)
    state = copied(whole.state_dict())
    random = torch.get_rng_state()
    for rows in data[2:]:
        whole.update(rows)
    again.load_state_dict(state)
    torch.set_rng_state(random)
    for rows in data[2:]:
        again.update(rows)
    mine, theirs = (split(one.state_dict())[1] for one in (whole, again))
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    act = [one.act(data[0].obs, torch.Generator().manual_seed(0)) for one in (whole, again)]
    assert torch.equal(act[0].actions, act[1].actions)
    assert torch.equal(act[0].actions, act[0].chunk[:, whole.policy.spec.executed])


def test_the_ascent_of_dql_does_not_depend_on_the_unit_of_q():
    # -mean(2, 4) / mean(|1|, |-5|) = -3 / 3
    q, other = torch.tensor([2.0, 4.0], requires_grad=True), torch.tensor([1.0, -5.0])
    loss = normalized_ascent(q, other)
    torch.testing.assert_close(loss, torch.tensor(-1.0))
    torch.testing.assert_close(normalized_ascent(100 * q, 100 * other), loss)
    loss.backward()
    torch.testing.assert_close(q.grad, torch.tensor([-1 / 6, -1 / 6]))


@pytest.mark.parametrize("algorithm", ["dql", "sac", "ogpo"])
def test_the_step_of_the_actor_leaves_the_qs_without_gradients(make_policy, algorithm):
    one = learner(make_policy("shortcut"), algorithm)
    one.critic.optimizer.zero_grad()
    chunk = one.policy.sample(torch.randn(4, 10), torch.randn(4, 8, 3))
    one.critic.judge(torch.randn(4, 10), chunk[:, one.policy.spec.executed].flatten(1)).sum().backward()
    assert all(p.grad is None for p in one.critic.q.parameters())
    assert sum(p.grad.abs().sum() for p in one.policy.net.parameters() if p.grad is not None) > 0


def test_dql_climbs_q(make_policy):
    torch.manual_seed(0)
    one = learner(make_policy("shortcut"), "dql", eta=50.0, lr=1e-3, lr_critic=0.0, ema_decay=0.0, random_shift=0)
    rows = batch(64)

    def q_of_policy() -> float:
        return one.value(rows.obs).mean().item()

    before = q_of_policy()
    for _ in range(15):
        one.update(rows)
    assert q_of_policy() > before


def test_samples_of_idql_are_drawn_by_the_side_of_v_that_their_q_is_on():
    # .7 above V, 1 - .7 below
    weights = expectile_weights(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([2.0, 0.0]), 0.7)
    torch.testing.assert_close(weights, torch.tensor([[0.3, 0.7], [0.7, 0.7]]))


def test_targets_of_idql_bootstrap_from_v_and_those_of_the_others_from_the_minimum_of_two(make_policy):
    torch.manual_seed(0)
    policy = make_policy("gaussian")
    rows = batch()
    idql = learner(policy, "idql")
    expected = rows.reward + GAMMA**4 * ~rows.terminated * idql.v(policy.encode(rows.next_obs))
    torch.testing.assert_close(idql.target(rows), expected)
    dql = learner(policy, "dql", num_min_qs=3)
    chunk = policy.sample(policy.encode(rows.next_obs), torch.zeros(12, 8, 3))[:, 1:5].clamp(-1, 1).flatten(1)
    lowest = dql.critic.slow(policy.encode(rows.next_obs), chunk).amin(0)
    torch.testing.assert_close(dql.target(rows), rows.reward + GAMMA**4 * ~rows.terminated * lowest)


def test_idql_clones_alone(make_policy):
    torch.manual_seed(0)
    one = learner(make_policy("gaussian"), "idql", random_shift=0)
    rows = batch()
    loss = one.policy.loss(one.policy.encode(rows.obs), one.policy.normalize_chunk(rows.chunk)).mean()
    torch.testing.assert_close(one.update(rows)["losses/total"], loss.detach())


def test_the_target_entropy_by_hand():
    # a number of one of 4 steps: std .2 / 2 = .1, and log(.1 * sqrt(2 pi e)) = -2.3026 + 1.4189
    assert target_entropy(0.2, 4) == pytest.approx(-0.8836, abs=1e-4)


def test_the_chain_of_a_gaussian_has_the_density_of_a_normal_distribution(make_policy):
    torch.manual_seed(0)
    one = learner(make_policy("gaussian"), "sac")
    cond = torch.randn(6, 10)
    chain = one.chain(cond)
    mean = one.policy.mean(cond)[:, 1:5]
    std = one.policy.std_bounds.squash(one.policy.std_drive)
    # in the middle of the bounds, on a logarithmic scale: sqrt(.05 * .4)
    torch.testing.assert_close(std, torch.full((3,), math.sqrt(0.02)))
    z = (chain.chunk[:, 1:5] - mean) / std
    density = (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum((1, 2))
    torch.testing.assert_close(chain.log_prob, density)
    assert one.num_scored == 4 * 3


def test_the_temperature_rises_below_the_target_entropy_and_falls_above(make_policy):
    one = learner(make_policy("gaussian"), "sac", lr_temperature=0.1)
    before = one.log_temperature.item()
    one.warm(torch.tensor(one.aim - 1))
    assert one.log_temperature.item() == pytest.approx(before + 0.1, abs=1e-3)
    for _ in range(3):
        one.warm(torch.tensor(one.aim + 9))
    assert one.log_temperature.item() < before + 0.1


def test_entropy_in_the_target_by_hand(make_policy):
    rows = batch()
    targets = []
    for flag in (False, True):
        torch.manual_seed(0)
        one = learner(make_policy("gaussian"), "sac", entropy_in_target=flag, num_min_qs=3)
        torch.manual_seed(1)
        targets.append(one.target(rows))
        torch.manual_seed(1)
        surprise = one.chain(one.policy.encode(rows.next_obs)).log_prob / 12
    bonus = -one.critic.unit * 0.01 * surprise  # the first temperature is .01
    torch.testing.assert_close(targets[1] - targets[0], (GAMMA**4 * ~rows.terminated * bonus).detach())


def test_only_demonstrations_are_imitated(make_policy):
    torch.manual_seed(0)
    policy = make_policy("gaussian")
    rows = batch()
    cond = policy.encode(rows.obs)
    losses = policy.loss(cond, policy.normalize_chunk(rows.chunk))
    rows.demonstrated = torch.arange(12) < 3
    torch.testing.assert_close(demonstrated_loss(policy, cond, rows), losses[:3].mean())
    rows.demonstrated = torch.zeros(12, dtype=torch.bool)
    assert demonstrated_loss(policy, cond, rows) == 0
    rows.demonstrated = None
    assert demonstrated_loss(policy, cond, rows) == 0


def test_the_agreed_advantage_by_hand():
    # two Qs of one state with three chains; group means 2 and 4
    q = torch.tensor([[[1.0, 2.0, 3.0]], [[2.0, 3.5, 6.5]]])
    # advantages (-1, 0, 1) and (-2, -.5, 2.5): the cautious one where the signs agree, 0 where not
    torch.testing.assert_close(agreed_advantage(q), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_ogpo_moves_the_actor_with_every_sixteenth_update_and_its_lagged_copy_behind(make_policy):
    torch.manual_seed(0)
    one = learner(make_policy("shortcut"), "ogpo", states=6, group=4, lag=0.25)
    before = {name: value.clone() for name, value in one.module.state_dict().items()}
    for _ in range(15):
        assert "losses/policy" not in one.update(batch(demonstrated=True))
    assert all(torch.equal(value, before[name]) for name, value in one.module.state_dict().items())
    metrics = one.update(batch(demonstrated=True))
    # chains come from the lagged copy, which is the actor itself yet
    torch.testing.assert_close(metrics["losses/approx_kl"], torch.tensor(0.0), atol=1e-5, rtol=0)
    assert metrics["losses/bc"] > 0
    now = one.module.state_dict()
    moved = [name for name, value in now.items() if not torch.equal(value, before[name])]
    assert moved
    for name in moved:
        torch.testing.assert_close(one.lagged.module.state_dict()[name], 0.75 * before[name] + 0.25 * now[name])


def test_ogpo_makes_better_chains_of_a_group_likelier(make_policy):
    torch.manual_seed(0)
    one = learner(make_policy("gaussian"), "ogpo", lr=1e-3, lr_critic=0.0, bc_weight=0.0, critic_updates=1, lag=1.0,
                  states=64, group=16)  # fmt: skip
    rows = batch(64)
    before = one.value(rows.obs).mean()
    for _ in range(30):
        one.update(rows)
    assert one.value(rows.obs).mean() > before


def test_qs_of_a_checkpoint_are_where_an_algorithm_starts(make_policy):
    first = learner(make_policy("gaussian"), "dql")
    again = ONLINE["dql"].build(
        make_policy("gaussian"), with_flags(ONLINE["dql"].config(), SMALL), Setting(GAMMA, parts=first.parts())
    )
    cond, action = torch.randn(4, 10), torch.randn(4, 12)
    torch.testing.assert_close(again.critic(cond, action), first.critic.slow(cond, action))
    assert QConfig(**SMALL).num_qs == 3


def test_qs_that_promise_too_much_are_an_alarm(make_policy):
    one = learner(make_policy("gaussian"), "dql")
    # the unit is a quarter of 1 / (1 - .9): 2.5
    assert one.worries({"losses/q_bias": 2.4}) == []
    assert "q_bias" in one.worries({"losses/q_bias": 2.6})[0]


def test_a_residual_is_switched_on_over_its_first_decisions(make_policy):
    torch.manual_seed(0)
    one = learner(make_policy("shortcut", initial_noise_scale=0.0), "residual", switch_on=300, explore_std=0.0)
    torch.nn.init.normal_(one.helped.net[-1].weight, std=0.5)
    obs = {"state": torch.randn(100, 2, 5)}
    base = one.policy.act(obs)
    shares = []
    for _ in range(4):
        actions = one.act(obs, torch.Generator().manual_seed(0)).actions
        shares.append((actions != base).flatten(1).any(1).float().mean().item())
    # 0, 100, 200 and 300 of 300 decisions: none, a third, two thirds and all; std sqrt(.33 * .67 / 100) = .047
    assert shares[0] == 0
    assert abs(shares[1] - 1 / 3) < 0.15
    assert abs(shares[2] - 2 / 3) < 0.15
    assert shares[3] == 1


@pytest.mark.parametrize("algorithm", ["residual", "dsrl", "ibrl"])
def test_a_helped_policy_stays_as_it_is_and_its_network_climbs_q(make_policy, algorithm):
    torch.manual_seed(0)
    policy = make_policy("shortcut")
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    one = learner(policy, algorithm, lr=1e-2, lr_critic=0.0, actor_tau=1.0)
    rows = batch(64)
    cond = policy.encode(rows.obs)

    def q_of_proposal() -> float:
        with torch.no_grad():
            return one.critic(cond, one.proposed(cond)[:, policy.spec.executed].clamp(-1, 1).flatten(1)).mean().item()

    first = q_of_proposal()
    for _ in range(20):
        one.update(rows)
    assert q_of_proposal() > first
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert "actor" in one.parts()


def test_dsrl_is_for_what_starts_from_noise(make_policy):
    with pytest.raises(UserError, match="dsrl chooses x_0"):
        learner(make_policy("gaussian"), "dsrl")


@pytest.mark.parametrize("algorithm", ["dql", "rlpd", "residual"])
def test_pictures_are_remembered_as_they_come_and_learnt_from(algorithm):
    torch.manual_seed(0)
    env = ActionChunk(SyntheticEnv(4, state_dim=6, max_episode_steps=5, image=IMAGE), 2, FRAMES, GAMMA)
    one = learner(build_policy(NET.for_env(env.spec, 2)), algorithm)
    replay, obs = ReplayBuffer(50, GAMMA), env.reset(seed=0)
    for _ in range(3):
        decision = one.act(obs, torch.Generator().manual_seed(0))
        step = env.step_chunk(decision.actions)
        replay.add(obs, decision.chunk, step)
        obs = step.obs
    assert (replay.data["obs"]["rgb"].dtype, replay.data["obs"]["depth"].dtype) == (torch.uint8, torch.int16)
    metrics = one.update(Mixture(replay, None, 0.0, slice(0)).sample(6, torch.Generator()))
    assert metrics["losses/critic_skipped_steps"] == 0
    assert all(value.isfinite().all() for value in metrics.values())
    assert one.judged(obs, decision.actions).shape == (4,)
