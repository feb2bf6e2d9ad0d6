"""Offline algorithms as learners: what they improve and on what, their targets on a solved MDP, and their states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from reinflow.algorithms import OFFLINE, able_families
from reinflow.algos.cal_ql import CalQL
from reinflow.algos.cql import CQL
from reinflow.algos.dipo import DIPO
from reinflow.algos.fql import FQL, one_step_loss
from reinflow.algos.meanflow_ql import MeanFlowQL, falling_share
from reinflow.algos.offline_options import (
    CalQLConfig,
    CQLConfig,
    DIPOConfig,
    FQLConfig,
    MeanFlowQLConfig,
    QSMConfig,
    RWRConfig,
)
from reinflow.algos.qsm import QSM
from reinflow.algos.rwr import RWR
from reinflow.algos.setting import Setting
from reinflow.data.chunks import TransitionBatch
from reinflow.errors import UserError
from reinflow.flags import flat_fields, with_flags
from reinflow.policies.base import Policy

MakePolicy = Callable[..., Policy]
GAMMA = 0.9
SMALL = {"num_qs": 2, "num_min_qs": 2, "q_hidden_dim": 32, "lr_critic": 3e-3, "tau": 0.1, "lr": 3e-3, "lr_warmup": 5,
         "ema_decay": 0.95, "lr_one_step": 3e-3, "own_share_updates": 30}  # fmt: skip
NAMES = [name for name in OFFLINE if OFFLINE[name].rewards]


def family_of(name: str) -> str:
    """A cheap one that an algorithm takes."""
    return "reflow" if "reflow" in able_families(OFFLINE[name]) else "ddpm"


def make(name: str, policy: Policy, updates: int = 100, **flags: object) -> Any:
    config = OFFLINE[name].config()
    known = dict(flat_fields(config))
    chosen = {flag: value for flag, value in (SMALL | flags).items() if flag in known}
    return OFFLINE[name].build(policy, with_flags(config, chosen), Setting(GAMMA, updates))


def transitions(policy: Policy, rows: int = 64) -> TransitionBatch:
    """Half of the demonstrated chunks go to +.5 and earn 1, the other half go to -.5 and earn nothing."""
    spec = policy.spec
    obs = {"state": torch.randn(rows, spec.obs_horizon, spec.state_dim)}
    good = torch.arange(rows) % 2 == 0
    level = torch.where(good, 0.5, -0.5)[:, None, None] + 0.1 * torch.randn(rows, *spec.chunk_shape)
    never = torch.zeros(rows, dtype=torch.bool)
    reward = good.float()
    return TransitionBatch(obs, level, reward, torch.full((rows,), GAMMA), obs, ~never, never, return_to_go=reward)


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_prefers_what_is_rewarded_of_what_was_done(make_policy: MakePolicy, name):
    # the mean of what was demonstrated is 0, the better half is at .5
    policy = make_policy(family_of(name), num_inference_steps=2, act_horizon=2, pred_horizon=2, obs_horizon=1)
    learner = make(name, policy, beta=2.0, cql_alpha=0.1, action_lr=0.1, q_score=3.0, distillation=1.0)
    for _ in range(100):
        metrics = learner.update(transitions(policy))
    assert all(value.shape == () and bool(value.isfinite()) for value in metrics.values())
    with torch.no_grad():
        acted = learner.evaluated.act({"state": torch.randn(200, 1, 5)})
    assert acted.mean() > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_learner_continues_to_the_bit(make_policy: MakePolicy, name):
    first, second = (make(name, make_policy(family_of(name), num_inference_steps=2)) for _ in range(2))
    data = [transitions(first.policy, 16) for _ in range(3)]
    first.update(data[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for learner in (first, second):
        torch.manual_seed(5)
        for batch in data[1:]:
            learner.update(batch)
    ours, theirs = ({"policy": one.evaluated.state_dict(), **one.parts()} for one in (first, second))
    for part, state in ours.items():
        assert all(torch.equal(value, theirs[part][key]) for key, value in state.items()), part


class Corridor:
    """Two states, two chunks each. Chunk -1 stays for 4 steps, chunk +1 changes the state in 2, or ends in 3."""

    reward = torch.tensor([0.5, 1.0, 0.2, 5.0])
    steps = torch.tensor([4.0, 2.0, 4.0, 3.0])
    after = torch.tensor([0, 1, 1, 0])
    terminated = torch.tensor([False, False, False, True])
    state = F.one_hot(torch.tensor([0, 0, 1, 1]), 2).float()
    chunk = torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None, None]

    def batch(self) -> TransitionBatch:
        obs, after = ({"state": state[:, None]} for state in (self.state, self.state[2 * self.after]))
        discount, no = GAMMA**self.steps, torch.zeros(4, dtype=torch.bool)
        return TransitionBatch(obs, self.chunk, self.reward, discount, after, self.terminated, no)

    def solved(self, value: Callable[[float, float], float]) -> torch.Tensor:
        """Q by iteration in plain floats, where a state is worth `value` of its two Qs."""
        q = [0.0] * 4
        for _ in range(500):
            worth = [value(q[0], q[1]), value(q[2], q[3])]
            q = [
                float(self.reward[i]) + (not self.terminated[i]) * GAMMA ** float(self.steps[i]) * worth[self.after[i]]
                for i in range(4)
            ]
        return torch.tensor(q)


def corridor_policy(make_policy: MakePolicy) -> Policy:
    sizes = {"state_dim": 2, "action_dim": 1, "obs_horizon": 1, "act_horizon": 1, "pred_horizon": 1}
    policy = make_policy("reflow", **sizes)
    policy.encoder.load_state_dict({n: torch.ones_like(v) if "scale" in n else 0 * v
                                    for n, v in policy.encoder.state_dict().items()})  # fmt: skip
    return policy


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        # the policy goes on: 5 from state 1, and 1 + .81 * 5 from state 0
        ("dql", lambda stay, go: go, [3.8133, 5.05, 3.4805, 5.0]),
        # the best of both: going on, too
        ("cal_ql", max, [3.8133, 5.05, 3.4805, 5.0]),
        # of two equally frequent Qs the .9-expectile is .9 of the higher and .1 of the lower: V = 4.837 in state 1
        ("idql", lambda stay, go: 0.9 * max(stay, go) + 0.1 * min(stay, go), [3.6432, 4.9183, 3.3738, 5.0]),
    ],
)
def test_the_fixed_point_of_a_target_is_the_solution_of_the_mdp(make_policy: MakePolicy, name, value, expected):
    task = Corridor()
    torch.testing.assert_close(task.solved(value), torch.tensor(expected), atol=1e-3, rtol=0)
    learner = make(name, corridor_policy(make_policy), q_hidden_dim=16, lr_critic=1e-2, expectile=0.9)
    learner.next_action = lambda cond: torch.ones(len(cond), 1)
    both = torch.tensor([-1.0, 1.0])
    learner.own_actions = lambda cond, number: both.repeat(number // 2).expand(len(cond), -1).unsqueeze(-1)
    batch, action = task.batch(), task.chunk.flatten(1)
    cond = learner.policy.encode(batch.obs)
    for _ in range(400):
        learner.critic.update(cond, action, learner.target(batch))
        if name == "idql":
            learner.step_of_value(cond, action)
    found = learner.critic.slow(cond, action)
    torch.testing.assert_close(found, torch.tensor(expected).expand(2, 4), atol=0.2, rtol=0)


def test_conservative_qs_are_low_where_no_data_are_and_plain_ones_needn_t_be(make_policy: MakePolicy):
    gaps = {}
    for alpha in (0.0, 1.0):
        torch.manual_seed(0)
        learner = make("cql", make_policy("reflow", act_horizon=2, pred_horizon=2, obs_horizon=1), cql_alpha=alpha)
        batch = transitions(learner.policy, 128)
        cond, action = learner.policy.encode(batch.obs), batch.chunk.flatten(1)
        for _ in range(60):
            learner.critic.update(cond, action, batch.reward, learner.penalty(batch, cond, action))
        off = 2 * torch.rand(128, action.shape[1]) - 1
        gaps[alpha] = (learner.critic.slow(cond, action) - learner.critic.slow(cond, off)).mean().item()
    assert gaps[1.0] > 1 + gaps[0.0]


def test_cal_ql_needs_the_returns_that_followed(make_policy: MakePolicy):
    learner = CalQL(make_policy("reflow"), CalQLConfig(), Setting(GAMMA, 10))
    batch = transitions(learner.policy, 8)
    batch.return_to_go = None
    with pytest.raises(UserError, match="returns that followed"):
        learner.update(batch)


def test_the_one_step_loss_by_hand():
    # distance (1 + 0) / 2; mean Qs 2 and -1 over a mean size of 1.5: -.5 / 1.5
    own, taught = torch.tensor([[[1.0]], [[0.0]]]), torch.zeros(2, 1, 1)
    loss, distance = one_step_loss(own, taught, torch.tensor([[1.0, -1.0], [3.0, -1.0]]), distillation=3.0)
    assert (distance.item(), loss.item()) == (0.5, pytest.approx(1.5 - 1 / 3))


def test_fql_acts_in_one_step_while_its_flow_keeps_its_own_and_shares_its_encoder(make_policy: MakePolicy):
    learner = FQL(make_policy("shortcut"), FQLConfig(), Setting(GAMMA, 10))
    assert (learner.evaluated.spec.num_inference_steps, learner.policy.spec.num_inference_steps) == (1, 4)
    assert learner.one_step.encoder is learner.policy.encoder
    assert not {id(p) for p in learner.parameters} & {id(p) for p in learner.policy.parameters()}


@pytest.mark.parametrize("learner", [(FQL, FQLConfig), (MeanFlowQL, MeanFlowQLConfig), (CQL, CQLConfig)])
def test_a_family_that_can_t_act_in_one_step_is_refused(make_policy: MakePolicy, learner):
    build, config = learner
    with pytest.raises(UserError, match="acts in one step: K = 1 denoising steps were not trained"):
        build(make_policy("shortcut", step_size_mode="fixed"), config(), Setting(GAMMA, 10))
    for name in ("fql", "meanflow_ql", "cql", "cal_ql"):
        assert "ddpm" not in able_families(OFFLINE[name]) and "gaussian" in able_families(OFFLINE[name])


def test_the_share_of_cloning_falls_in_a_straight_line():
    assert [falling_share(update, 0.2, 4) for update in (0, 1, 2, 4, 9)] == pytest.approx([1, 0.8, 0.6, 0.2, 0.2])
    assert falling_share(0, 0.5, 0) == 1


def test_only_the_executed_part_of_a_chunk_is_cloned_from_better_actions(make_policy: MakePolicy):
    learner = DIPO(make_policy("reflow"), DIPOConfig(), Setting(GAMMA, 10))
    chunk = torch.zeros(2, 8, 3)
    better = learner.policy.normalize_chunk(learner.with_action(chunk, torch.ones(2, 12)))
    # two frames of history and 4 executed steps: rows 1 to 4 of 8
    torch.testing.assert_close(
        better[:, :, 0], torch.tensor([0.0, 1, 1, 1, 1, 0, 0, 0]).expand(2, 8), atol=1e-6, rtol=0
    )


def test_without_q_a_score_is_matched_to_the_demonstrations_alone(make_policy: MakePolicy):
    learner = QSM(make_policy("ddpm"), QSMConfig(q_score=0.0), Setting(GAMMA, 10))
    noise = torch.randn(4, *learner.policy.spec.chunk_shape)
    target, _ = learner.wanted(torch.randn(4, learner.policy.spec.cond_dim), torch.randn_like(noise), noise)
    assert torch.equal(target, noise)
    assert able_families(OFFLINE["qsm"]) == ["ddpm"]
    with pytest.raises(UserError, match="needs a Scored policy, got ReFlow"):
        QSM(make_policy("reflow"), QSMConfig(), Setting(GAMMA, 10))


def test_the_weights_of_rwr_are_those_of_the_returns(make_policy: MakePolicy, monkeypatch):
    learner = RWR(make_policy("reflow"), RWRConfig(beta=1.0), Setting(GAMMA, 10))
    batch = transitions(learner.policy, 4)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    monkeypatch.setattr(learner, "regression", lambda batch: (losses, None))
    given: list[torch.Tensor] = []
    monkeypatch.setattr(learner, "descend", lambda loss: given.append(loss) or {})
    learner.update(batch)
    # returns 1, 0, 1, 0 have std .577, so weights are e^.866 = 2.377 and .4206: (2.377 * 4 + .4206 * 6) / (2 * 2.798)
    assert given[0].item() == pytest.approx(12.033 / 5.596, rel=1e-3)


@pytest.mark.parametrize("name", ["dql", "cal_ql"])
def test_new_qs_start_at_the_level_of_the_data(make_policy: MakePolicy, name):
    config = with_flags(OFFLINE[name].config(), {"q_hidden_dim": 16})
    learner = OFFLINE[name].build(make_policy("reflow"), config, Setting(GAMMA, 10, level=torch.tensor(7.0)))
    cond, action = torch.randn(500, learner.policy.spec.cond_dim), torch.randn(500, 12)
    # a new Q varies around its level by a fraction of its unit, .25 / (1 - .9) = 2.5
    assert learner.critic.slow(cond, action).mean().item() == pytest.approx(7.0, abs=2.0)
