"""Shortcut training: the times and step sizes it shows, its bootstrap targets, and one-step sampling of two modes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reinflow.errors import UserError
from reinflow.policies import PolicySpec, build_policy, make_stochastic
from reinflow.policies.ema import EMA
from reinflow.policies.options import ShortcutConfig
from reinflow.policies.shortcut import Shortcut


class Field(nn.Module):
    """A velocity field given as a function of x; notes the times and step sizes it is asked for."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity
        self.times, self.steps = torch.empty(0), torch.empty(0)

    def forward(self, x, t, d, cond):
        self.times, self.steps = torch.cat((self.times, t)), torch.cat((self.steps, d))
        return self.velocity(x)


def constant(value):
    return Field(lambda x: torch.full_like(x, value))


def shown(make_spec, rows=4000, **options):
    """Times and step sizes that the student sees in one loss, and those that its teacher sees."""
    student, teacher = constant(1.0), constant(1.0)
    spec = make_spec(**options)
    policy = Shortcut(spec, student)
    policy.loss(torch.zeros(rows, 10), torch.zeros(rows, 8, 3), teacher=Shortcut(spec, teacher))
    return student.times, student.steps, teacher


@pytest.mark.parametrize("t_sampling", ["uniform", "logitnormal", "beta"])
def test_flow_rows_carry_step_size_zero_and_times_that_cover_the_unit_interval(make_spec, t_sampling):
    times, steps, _ = shown(make_spec, t_sampling=t_sampling)
    assert (steps[:1000] > 0).all()  # a quarter of 4000 rows is bootstrapped
    assert (steps[1000:] == 0).all()
    flow = times[1000:]
    assert 0 <= flow.min() < 0.05
    assert 0.95 < flow.max() <= 1


def test_beta_times_have_the_mean_of_their_distribution(make_spec):
    # Beta(1, 1.5) has mean 1 / 2.5 = .4: more training near the noise than uniform times
    times, _, _ = shown(make_spec, rows=40_000, t_sampling="beta", self_consistency_k=0.0)
    assert abs(times.mean() - 0.4) < 0.01


@pytest.mark.parametrize(
    ("mode", "counts"), [("power2", {1, 2, 4, 8}), ("uniform", {1, 2, 3, 4, 5, 6, 7, 8}), ("fixed", {8})]
)
def test_student_steps_lie_on_their_own_grid_and_end_at_data(make_spec, mode, counts):
    times, steps, _ = shown(make_spec, step_size_mode=mode, self_consistency_k=1.0)
    assert set((1 / steps).round().int().tolist()) == counts
    index = times / steps  # t = i * d
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-4)
    assert times.min() == 0
    assert (times + steps).max() <= 1 + 1e-6
    assert (times + steps).max() > 1 - 1e-6


def test_the_teacher_takes_half_steps_and_the_instantaneous_velocity_below_the_smallest(make_spec):
    times, steps, teacher = shown(make_spec, rows=1000, self_consistency_k=1.0)
    first, second = teacher.steps.chunk(2)
    # 1 -> 1/2, 1/2 -> 1/4, 1/4 -> 1/8, and 1/8 -> 0, because no row trains 1/16 while flow rows train 0
    expected = torch.where(steps > 0.125, steps / 2, 0.0)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    torch.testing.assert_close(teacher.times, torch.cat((times, times + steps / 2)))


@pytest.mark.parametrize(("mode", "most"), [("power2", 8), ("power2", 6), ("uniform", 6), ("fixed", 8)])
@pytest.mark.parametrize("teacher_steps", [2, 3, 4])
def test_the_teacher_is_shown_nothing_that_no_row_trains(make_spec, mode, most, teacher_steps):
    options = {"step_size_mode": mode, "max_denoising_steps": most, "teacher_steps": teacher_steps}
    _, trained, teacher = shown(make_spec, self_consistency_k=0.5, **options)
    assert set(teacher.steps.tolist()) <= set(trained.tolist())


@pytest.mark.parametrize(
    ("mode", "most", "trained"),
    [("power2", 8, {1, 2, 4, 8}), ("power2", 6, {1, 2, 4}), ("uniform", 6, {1, 2, 3, 4, 5, 6}), ("fixed", 8, {8})],
)
@pytest.mark.parametrize("net", ["mlp", "unet"])
@torch.no_grad()
def test_sampling_and_scoring_in_any_number_of_steps_show_the_next_smaller_step_size_that_is_trained(
    make_policy, net, mode, most, trained
):
    policy = make_policy(net=net, step_size_mode=mode, max_denoising_steps=most)
    for parameter in policy.parameters():  # a fresh net hardly tells step sizes apart
        parameter.add_(0.1 * torch.randn_like(parameter))
    cond, noise = torch.randn(3, 10), torch.randn(3, 8, 3)
    for num_steps in (*range(1, 10), 16):
        label = torch.full((3,), max((1 / n for n in trained if n >= num_steps), default=0.0))
        states = [noise]
        for k in range(num_steps):
            t = torch.full((3,), k / num_steps)
            states.append(states[-1] + policy.net(states[-1], t, label, cond) / num_steps)
        torch.testing.assert_close(policy.sample(cond, noise, num_steps), states[-1])
        actor, chain = make_stochastic(policy, num_steps), torch.stack(states, 1)
        torch.testing.assert_close(actor.steps(chain[:, :-1], cond).means, chain[:, 1:])
        last = actor.kernel(cond)(num_steps - 1, states[-2])
        torch.testing.assert_close(last.means, states[-1])


@pytest.mark.parametrize(
    ("mode", "most", "coarse"), [("power2", 8, {3, 5, 6, 7}), ("uniform", 8, set()), ("fixed", 4, {1, 2, 3})]
)
def test_few_steps_of_an_untrained_size_are_warned_about_and_many_are_not(make_policy, mode, most, coarse):
    policy = make_policy(step_size_mode=mode, max_denoising_steps=most)
    assert {k for k in range(1, 33) if policy.steps_warning(k)} == coarse


@pytest.mark.parametrize("teacher_steps", [2, 3, 4, 8])
@pytest.mark.parametrize("d", [1.0, 0.5, 0.25, 0.125])
def test_for_a_constant_field_the_target_is_the_field(make_spec, teacher_steps, d):
    policy = Shortcut(make_spec(teacher_steps=teacher_steps), constant(0.7))
    target = policy.bootstrap_target(
        policy, torch.randn(4, 8, 3), torch.zeros(4), torch.full((4,), d), torch.zeros(4, 10)
    )
    torch.testing.assert_close(target, torch.full((4, 8, 3), 0.7))


@pytest.mark.parametrize(("teacher_steps", "expected"), [(2, 1.25), (4, 1.44140625)])
def test_bootstrap_target_of_a_growing_field_by_hand(make_spec, teacher_steps, expected):
    # v(x) = x from x = 1 over d = 1: v1 = 1, x = 1.5, v2 = 1.5, mean 1.25;  four steps: 1.25^4 - 1 = 1.44140625
    policy = Shortcut(make_spec(teacher_steps=teacher_steps), Field(lambda x: x))
    target = policy.bootstrap_target(policy, torch.ones(1, 8, 3), torch.zeros(1), torch.ones(1), torch.zeros(1, 10))
    torch.testing.assert_close(target, torch.full((1, 8, 3), expected))


@pytest.mark.parametrize(("target_mode", "scale"), [("velocity", lambda d: 1.0), ("endpoint", lambda d: d**2)])
def test_bootstrap_rows_are_weighted_errors_of_velocities_or_of_endpoints(make_spec, target_mode, scale):
    # student 1, teacher 3: velocities differ by 2, endpoints by 2d; shortcut_weight .5
    student = constant(1.0)
    options = {"self_consistency_k": 1.0, "shortcut_weight": 0.5, "target_mode": target_mode}
    policy = Shortcut(make_spec(**options), student)
    loss = policy.loss(torch.zeros(50, 10), torch.zeros(50, 8, 3), teacher=Shortcut(make_spec(), constant(3.0)))
    torch.testing.assert_close(loss, 0.5 * 4 * scale(student.steps) * torch.ones(50))


def test_flow_rows_are_weighted_errors_against_data_minus_noise(make_spec):
    # a field of 0 on chunks of 0: the error is the square of the noise, mean 1
    spec = make_spec(self_consistency_k=0.0, flow_weight=3.0)
    loss = Shortcut(spec, constant(0.0)).loss(torch.zeros(4000, 10), torch.zeros(4000, 8, 3))
    assert abs(loss.mean() - 3) < 0.05


def test_targets_carry_no_gradient_to_their_teacher(make_policy):
    student, teacher = make_policy(), make_policy()
    student.loss(torch.randn(16, 10), torch.randn(16, 8, 3), teacher=teacher).mean().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("options", [{"self_consistency_k": 1.5}, {"teacher_steps": 1}], ids=str)
def test_impossible_options_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        ShortcutConfig(**options)


def trained_on_two_modes(family, iterations):
    """The averaged weights after training on chunks that are -0.8 or 0.8 with equal probability."""
    spec = PolicySpec.of(
        family=family,
        net="mlp",
        obs_horizon=1,
        act_horizon=1,
        pred_horizon=1,
        mlp_hidden_dim=64,
        mlp_depth=2,
        diffusion_step_embed_dim=32,
    )
    policy = build_policy(spec)
    ema = EMA(policy, decay=0.98)
    options = {"teacher": ema.module} if family == "shortcut" else {}
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    for _ in range(iterations):
        chunk = 0.8 * (2.0 * torch.randint(0, 2, (128, 1, 1)) - 1)
        optimizer.zero_grad()
        policy.loss(torch.zeros(128, 1), chunk, **options).mean().backward()
        optimizer.step()
        ema.update(policy)
    return ema.module


@torch.no_grad()
def share_near(policy, mode, num_steps):
    chunks = policy.sample(torch.zeros(1000, 1), torch.randn(1000, 1, 1), num_steps)
    return ((chunks - mode).abs() < 0.3).float().mean()


def test_one_step_hits_both_modes_with_shortcut_and_none_with_reflow():
    shortcut, reflow = trained_on_two_modes("shortcut", 800), trained_on_two_modes("reflow", 400)
    for mode in (-0.8, 0.8):
        assert share_near(shortcut, mode, num_steps=1) > 0.35
        assert share_near(reflow, mode, num_steps=8) > 0.3  # it has learned both, but needs its steps
        assert share_near(reflow, mode, num_steps=1) < 0.1
    assert share_near(reflow, 0.0, num_steps=1) > 0.8  # one step goes to the mean of the modes
