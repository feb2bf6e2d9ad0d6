"""Consistency policies: the end of a path by hand, neighbours that agree, noise put back, and a teacher that stays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from reinflow.errors import UserError
from reinflow.policies import NoiseNetConfig, PolicySpec, build_policy
from reinflow.policies.base import Policy
from reinflow.policies.consistency import Consistency
from reinflow.storage.checkpoint import Checkpoint, adopt_teacher_, load_policy, save_checkpoint
from reinflow.types import EnvSpec

SMALL = {"net": "mlp", "obs_horizon": 1, "act_horizon": 1, "pred_horizon": 1, "mlp_hidden_dim": 64, "mlp_depth": 2,
         "diffusion_step_embed_dim": 16}  # fmt: skip
TASK = EnvSpec("Toy-v0", "state", "toy", "torch", "sparse", 1, (-1.0,), (1.0,), 24)


def saved(policy: Policy, path) -> str:
    save_checkpoint(path, Checkpoint(policy.spec, TASK, policy.state_dict()))
    return str(path)


@pytest.fixture
def teacher(make_policy) -> Policy:
    return make_policy("reflow")


@pytest.fixture
def student(make_spec, teacher, tmp_path) -> Consistency:
    torch.manual_seed(7)
    policy = build_policy(make_spec("consistency", teacher_path=saved(teacher, tmp_path / "teacher.pt")))
    adopt_teacher_(policy)
    return policy


def test_the_end_of_a_path_is_x_at_data_and_one_euler_step_away_at_noise(make_policy):
    policy = make_policy("consistency")
    x, cond, zero = torch.randn(6, 8, 3), torch.randn(6, 10), torch.zeros(6)
    assert torch.equal(policy.end(x, torch.ones(6), cond), x)
    for time in (0.0, 0.25):
        t = torch.full((6,), time)
        torch.testing.assert_close(policy.end(x, t, cond), x + (1 - time) * policy.net(x, t, zero, cond))


def expected_loss(policy, cond, chunk, velocity):
    """With the draws that `loss` makes, of neighbours that are 1/20 apart or end at 1."""
    x_0, t = torch.randn_like(chunk), torch.rand(len(chunk))
    step = torch.minimum(1 - t, torch.tensor(1 / 20))
    x = (1 - t[:, None, None]) * x_0 + t[:, None, None] * chunk
    ahead = policy.end(x + step[:, None, None] * velocity(x, t, x_0), t + step, cond).detach()
    return (policy.end(x, t, cond) - ahead).square().mean((1, 2)) / (1 - t)


def test_neighbours_on_the_samples_own_path_are_compared_without_a_teacher(make_policy):
    policy = make_policy("consistency")
    cond, chunk = torch.randn(64, 10), torch.rand(64, 8, 3)
    torch.manual_seed(3)
    loss = policy.loss(cond, chunk)
    torch.manual_seed(3)
    expected = expected_loss(policy, cond, chunk, lambda x, t, x_0: chunk - x_0)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-6)


def test_a_teacher_moves_the_neighbour_by_one_euler_step_and_gets_no_gradient(student, teacher):
    cond, chunk = torch.randn(64, 10), torch.rand(64, 8, 3)
    torch.manual_seed(3)
    loss = student.loss(cond, chunk)
    torch.manual_seed(3)
    expected = expected_loss(student, cond, chunk, lambda x, t, x_0: teacher.avg_velocity(x, t, t, cond))
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-6)
    mine = {id(p) for p in student.net.parameters()}
    assert {id(p) for p in student.parameters() if p.requires_grad} == mine


def test_a_student_starts_as_its_teacher_with_its_normalisers_and_a_checkpoint_holds_both(student, teacher, tmp_path):
    path = saved(student, tmp_path / "student.pt")
    (tmp_path / "teacher.pt").unlink()
    restored, _ = load_policy(path, "cpu")
    for mine in (student, restored):
        for module in (mine.net, mine.teacher_net):
            assert all(torch.equal(module.state_dict()[name], v) for name, v in teacher.net.state_dict().items())
        assert torch.equal(mine.encoder.state_normalizer.shift, teacher.encoder.state_normalizer.shift)
        assert torch.equal(mine.action_normalizer.shift, teacher.action_normalizer.shift)


@pytest.mark.parametrize("changes", [{"family": "shortcut"}, {"pred_horizon": 16}, {"mlp_hidden_dim": 32}])
def test_a_teacher_that_does_not_fit_is_refused(make_spec, tmp_path, changes):
    other = build_policy(make_spec(**{"family": "reflow"} | changes))
    policy = build_policy(make_spec("consistency", teacher_path=saved(other, tmp_path / "teacher.pt")))
    with pytest.raises(UserError, match="the teacher of a consistency policy has"):
        adopt_teacher_(policy)


def test_noise_is_put_back_by_hand(make_policy):
    # K = 2: to the end, half of it and half of x_0, to the end again
    policy = make_policy("consistency")
    noise, cond = torch.randn(6, 8, 3), torch.randn(6, 10)
    half = 0.5 * policy.end(noise, torch.zeros(6), cond) + 0.5 * noise
    expected = policy.end(half, torch.full((6,), 0.5), cond)
    torch.testing.assert_close(policy.sample(cond, noise, 2), expected)


def test_exploration_adds_the_variances_of_new_and_learned_noise(make_policy):
    # K = 4 puts 3/4, 1/2, 1/4 and none of the noise back, each times the scale .5
    policy = make_policy("consistency", initial_noise_scale=0.5)
    actor = policy.chain(4, NoiseNetConfig())
    actor.set_noise_bounds_(0.3, 0.3)
    stds = actor.stds(torch.randn(1, 10))[0, :, 0, 0]
    expected = [math.hypot(0.3, share) for share in (0.375, 0.25, 0.125, 0.0)]
    torch.testing.assert_close(stds, torch.tensor(expected))


def test_a_distilled_policy_hits_both_modes_of_its_teacher_in_one_step(tmp_path):
    torch.manual_seed(0)
    teacher = build_policy(PolicySpec.of(family="reflow", **SMALL))
    trained(teacher, 250)
    spec = PolicySpec.of(family="consistency", teacher_path=saved(teacher, tmp_path / "teacher.pt"), **SMALL)
    policy = build_policy(spec)
    adopt_teacher_(policy)
    trained(policy, 250)
    with torch.no_grad():
        chunks = policy.sample(torch.zeros(1000, 1), torch.randn(1000, 1, 1), num_steps=1)
    for mode in (-0.8, 0.8):
        assert ((chunks - mode).abs() < 0.3).float().mean() > 0.25


def trained(policy: Policy, iterations: int) -> None:
    """On chunks that are -.8 or .8."""
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        chunk = 0.8 * (2.0 * torch.randint(0, 2, (128, 1, 1)) - 1)
        optimizer.zero_grad()
        policy.loss(torch.zeros(128, 1), chunk).mean().backward()
        optimizer.step()
        scheduler.step()


def test_a_path_without_neighbours_is_refused(make_spec):
    with pytest.raises(UserError, match="--consistency_steps"):
        replace(make_spec("consistency").family_options, consistency_steps=0)
