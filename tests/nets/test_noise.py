"""Exploration noise: where it starts, that it never saturates, that bounds change in place, that draws repeat."""

from __future__ import annotations

import pytest
import torch

from nets import ExploreNoiseNet, NoisyVelocityUNet1D, ShortCutVelocityMLP, ShortCutVelocityUNet1D

B, H, A, Z, T = 6, 8, 3, 5, 16


def noise_net(**kwargs) -> ExploreNoiseNet:
    return ExploreNoiseNet(T, Z, A, hidden_dim=32, **{"min_std": 0.01, "max_std": 0.25} | kwargs)


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, T, generator=generator), torch.randn(B, Z, generator=generator)


def gradient_norm(net: ExploreNoiseNet) -> torch.Tensor:
    net.zero_grad()
    net(*embeddings()).log().sum().backward()
    return torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])


def noisy(base: torch.nn.Module | None = None, **kwargs) -> NoisyVelocityUNet1D:
    return NoisyVelocityUNet1D(
        base or ShortCutVelocityMLP(A, H, Z, hidden_dim=32), noise_net(**kwargs), time_embed_dim=T
    )


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, obs = torch.randn(B, H, A, generator=generator), torch.randn(B, Z, generator=generator)
    return x, torch.linspace(0, 0.75, B), torch.full((B,), 0.25), obs


def test_std_starts_at_the_geometric_mean_of_its_bounds():
    # zero last layer: tanh(0) = 0, so log sigma = (log .01 + log .25) / 2 and sigma = sqrt(.01 * .25) = .05
    torch.testing.assert_close(noise_net()(*embeddings()), torch.full((B, A), 0.05))


def test_per_position_option_gives_a_std_per_position_and_dimension():
    assert noise_net(horizon=H)(*embeddings()).shape == (B, H, A)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_drives_neither_saturate_the_std_nor_kill_its_gradient(sign):
    net = noise_net()
    assert gradient_norm(net) > 0
    optimizer = torch.optim.Adam(net.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        (sign * net(*embeddings()).log().sum() * 1e4).backward()
        optimizer.step()
    std = net(*embeddings())
    assert (std > 0.01).all()
    assert (std < 0.25).all()
    assert gradient_norm(net) > 0
    # it got next to the bound it was driven to: within 1 % of the log-range, which is log(25) = 3.2 wide
    bound = torch.tensor(0.01 if sign > 0 else 0.25)
    assert (std.log() - bound.log()).abs().max() < 0.032


def test_std_comes_back_from_an_extreme_drive():
    net = noise_net()
    with torch.no_grad():
        net.net[-1].bias.fill_(100.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        net(*embeddings()).log().sum().backward()
        optimizer.step()
    assert (net(*embeddings()) < 0.05).all()


def test_bounds_change_in_place():
    net = noise_net()
    pointers = net.log_min_std.data_ptr(), net.log_max_std.data_ptr()
    net.set_bounds_(0.02, 0.08)
    assert (net.log_min_std.data_ptr(), net.log_max_std.data_ptr()) == pointers
    torch.testing.assert_close(torch.stack((net.min_std, net.max_std)), torch.tensor([0.02, 0.08]))
    # sqrt(.02 * .08) = .04
    torch.testing.assert_close(net(*embeddings()), torch.full((B, A), 0.04))


def test_equal_bounds_fix_the_std():
    net = noise_net()
    net.set_bounds_(0.1, 0.1)
    torch.testing.assert_close(net(*embeddings()), torch.full((B, A), 0.1))


def test_bounds_travel_in_the_state_dict():
    net, other = noise_net(), noise_net()
    net.set_bounds_(0.02, 0.08)
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other.max_std, torch.tensor(0.08))


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.2, 0.1)])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="0 < min_std <= max_std"):
        noise_net().set_bounds_(*bounds)


@pytest.mark.parametrize("horizon", [None, H])
def test_noise_is_the_std_times_the_generators_normal_draw(horizon):
    net = noisy(horizon=horizon)
    velocity, noise, std = net(*inputs(), generator=torch.Generator().manual_seed(3))
    eps = torch.randn(B, H, A, generator=torch.Generator().manual_seed(3))
    assert velocity.shape == noise.shape == std.shape == (B, H, A)
    torch.testing.assert_close(noise, std * eps, rtol=0, atol=0)
    torch.testing.assert_close(noise, net(*inputs(), generator=torch.Generator().manual_seed(3))[1], rtol=0, atol=0)


def test_without_sampling_the_noise_is_zero_and_the_rest_stays():
    net = noisy()
    velocity, noise, std = net(*inputs(), sample_noise=False)
    assert not noise.any()
    torch.testing.assert_close(velocity, net.base_net(*inputs()), rtol=0, atol=0)
    torch.testing.assert_close(std, net(*inputs())[2], rtol=0, atol=0)


def test_it_wraps_the_unet_as_well():
    base = ShortCutVelocityUNet1D(A, Z, diffusion_step_embed_dim=16, down_dims=(16, 32), n_groups=4)
    assert noisy(base)(*inputs())[0].shape == (B, H, A)


def test_after_an_update_the_std_depends_on_time_and_observation_but_not_on_the_sample():
    net = noisy()
    torch.nn.init.normal_(net.explore_noise_net.net[-1].weight, generator=torch.Generator().manual_seed(0))
    x, t, d, obs = inputs()
    std = net(x, t, d, obs)[2]
    torch.testing.assert_close(net(x + 1, t, d, obs)[2], std, rtol=0, atol=0)
    assert (net(x, t + 0.1, d, obs)[2] != std).any()
    assert (net(x, t, d, obs + 1)[2] != std).any()


def test_noise_gradients_stay_out_of_the_velocity_net():
    net = noisy()
    net(*inputs())[2].sum().backward()
    assert all(p.grad is None for p in net.base_net.parameters())
