"""What every velocity backbone must hold: shapes, true conditioning on both times, and the condition computed once."""

from __future__ import annotations

import pytest
import torch

from nets import (
    CondLayout,
    CrossAttentionDiT,
    DiTConfig,
    Part,
    PreactMLPConfig,
    PreactVelocityMLP,
    ShortCutVelocityMLP,
    ShortCutVelocityUNet1D,
    SinusoidalEmbedding,
    TransformerConfig,
    VelocityTransformer,
)
from nets.taps import blocks_at, tapped
from nets.unet1d import Downsample, LocalConv1d, Upsample

B, A, Z = 5, 7, 12


def make_unet(horizon: int) -> ShortCutVelocityUNet1D:
    return ShortCutVelocityUNet1D(A, Z, diffusion_step_embed_dim=16, down_dims=(16, 24, 32), n_groups=4)


def make_mlp(horizon: int) -> ShortCutVelocityMLP:
    return ShortCutVelocityMLP(A, horizon, Z, hidden_dim=64, time_embed_dim=16)


def make_preact(horizon: int) -> PreactVelocityMLP:
    return PreactVelocityMLP(A, horizon, Z, PreactMLPConfig(preact_hidden_dim=64))


LAYOUT = CondLayout(frames=2, parts=(Part(1, 2), Part(2, 2)))  # 2 * (1 * 2 + 2 * 2) = 12 = Z


def make_transformer(horizon: int) -> VelocityTransformer:
    config = TransformerConfig(transformer_dim=32, transformer_depth=2, transformer_time_dim=16)
    return VelocityTransformer(A, horizon, LAYOUT, config)


def make_dit(horizon: int) -> CrossAttentionDiT:
    """As after some training: a new one's gates are closed, and it doesn't see times and condition at all."""
    net = CrossAttentionDiT(A, horizon, LAYOUT, DiTConfig(dit_dim=32, dit_depth=2, dit_time_dim=16))
    for parameter in net.modulation.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


MAKERS = [make_unet, make_mlp, make_preact, make_transformer, make_dit]
BACKBONES = pytest.mark.parametrize("make", MAKERS)


def inputs(horizon: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(B, horizon, A, generator=generator),
        "timestep": torch.linspace(0.1, 0.9, B),
        "step_size": torch.full((B,), 0.25),
        "global_cond": torch.randn(B, Z, generator=generator),
    }


@pytest.mark.parametrize("horizon", [4, 8, 16])
@BACKBONES
def test_output_has_the_shape_of_the_chunk(make, horizon):
    out = make(horizon)(**inputs(horizon))
    assert out.shape == (B, horizon, A)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", ["timestep", "step_size"])
@BACKBONES
def test_output_changes_with_each_time_at_a_thousandth(make, name):
    net, x = make(8), inputs()
    moved = net(**x | {name: x[name] + 1e-3})
    # every row moves, by far more than float32 noise (about 1e-7) and by less than the output itself
    change = (moved - net(**x)).abs().amax((1, 2))
    assert (change > 1e-5).all()
    assert (change < 1).all()


@pytest.mark.parametrize("name", ["sample", "global_cond"])
@BACKBONES
def test_output_changes_with_sample_and_condition(make, name):
    net, x = make(8), inputs()
    assert ((net(**x | {name: x[name] + 0.1}) - net(**x)).abs().amax((1, 2)) > 1e-4).all()


@BACKBONES
def test_jvp_in_time_is_the_finite_difference_and_not_zero(make):
    net = make(8).double()
    x = {name: value.double() for name, value in inputs().items()}
    t, one = x.pop("timestep"), torch.ones(B, dtype=torch.float64)
    _, tangent = torch.func.jvp(lambda time: net(timestep=time, **x), (t,), (one,))
    step = (
        1e-6  # the fastest sinusoid turns by 1e-3 rad, so the central difference is exact to about 1e-6 of the tangent
    )
    difference = (net(timestep=t + step, **x) - net(timestep=t - step, **x)) / (2 * step)
    assert tangent.abs().amax() > 1e-2
    torch.testing.assert_close(tangent, difference, rtol=1e-4, atol=1e-4)


@BACKBONES
def test_jvp_of_all_three_inputs_in_float32_is_the_finite_difference(make):
    # MeanFlow's du/dt moves x along v, t by 1 and d by -1
    net, x = make(8), inputs()
    v, one, cond = torch.randn_like(x["sample"]), torch.ones(B), x["global_cond"]
    point, along = (x["sample"], x["timestep"], x["step_size"]), (v, one, -one)
    with torch.no_grad():
        _, tangent = torch.func.jvp(lambda *moving: net(*moving, cond), point, along)
    assert tangent.dtype == torch.float32
    net.double()

    def moved(step: float) -> torch.Tensor:
        places = (here.double() + step * way.double() for here, way in zip(point, along, strict=True))
        return net(*places, cond.double())

    difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert difference.abs().mean() > 1e-2
    assert (tangent - difference).abs().max() < 1e-3 * difference.abs().max()


@BACKBONES
def test_a_chain_step_by_step_equals_its_grid(make):
    # what sampling does, features first, against what scoring does
    net, x = make(8), inputs()
    times, sizes = torch.tensor([0.0, 0.5]), torch.tensor([0.5, 0.5])
    chain = torch.randn(B, 2, *x["sample"].shape[1:])
    features = net.features(times, sizes, x["global_cond"])
    steps = [net.velocity(chain[:, k], features[:, k]) for k in range(2)]
    torch.testing.assert_close(
        torch.stack(steps, 1), net.grid(chain, times, sizes, x["global_cond"]), rtol=0, atol=1e-5
    )


@BACKBONES
def test_no_net_looks_at_a_value_so_a_cuda_graph_can_hold_it(make):
    # tensors on meta have no values: whoever asks for one raises
    net = make(8).to("meta")
    out = net(**{name: value.to("meta") for name, value in inputs().items()})
    assert out.shape == (B, 8, A)


@BACKBONES
def test_blocks_are_called_once_each_in_their_order_and_carry_the_state_of_the_net(make):
    net, x = make(8), inputs()
    calls: list[torch.nn.Module] = []
    for block in net.blocks:
        block.register_forward_hook(lambda block, args, output: calls.append(block))
    net(**x)
    assert calls == list(net.blocks)
    # nothing of the sample passes beside the last block, so what it gives is no increment
    net.blocks[-1].register_forward_hook(lambda block, args, output: torch.zeros_like(output))
    torch.testing.assert_close(net(**x), net(**x | {"sample": x["sample"] + 1}), rtol=0, atol=0)


@BACKBONES
def test_taps_see_the_pass_that_has_a_gradient_and_leave_no_hook(make):
    net, x = make(8), inputs()
    plain = net(**x)
    with tapped(blocks_at(net.blocks, "all")) as features:
        with torch.no_grad():
            net(**x)
        assert features == []
        assert torch.equal(net(**x), plain)
    assert len(features) == len(net.blocks)
    assert all(z.requires_grad and len(z) == B for z in features)
    net(**x)
    assert len(features) == len(net.blocks)


def test_depths_name_the_first_the_middle_and_the_last_block():
    blocks = [torch.nn.Identity() for _ in range(5)]
    assert [blocks.index(blocks_at(blocks, depth)[0]) for depth in ("early", "mid", "late")] == [0, 2, 4]
    assert blocks_at(blocks[:1], "mid") == blocks[:1]
    assert blocks_at(blocks, "all") == blocks


@BACKBONES
def test_a_grid_of_chain_states_equals_its_rows(make):
    net, x = make(8), inputs()
    times, sizes = torch.tensor([0.0, 0.25, 0.7]), torch.tensor([0.25, 0.25, 0.1])
    chain = torch.randn(B, 3, *x["sample"].shape[1:])
    grid = net.grid(chain, times, sizes, x["global_cond"])
    for k in range(3):
        one = net(chain[:, k], times[k].expand(B), sizes[k].expand(B), x["global_cond"])
        torch.testing.assert_close(grid[:, k], one, rtol=0, atol=1e-5)


@BACKBONES
def test_one_time_serves_all_rows(make):
    net, x = make(8), inputs()
    x["timestep"], x["step_size"] = torch.full((B,), 0.3), torch.full((B,), 0.1)
    torch.testing.assert_close(
        net(x["sample"], torch.tensor([0.3]), torch.tensor([0.1]), x["global_cond"]), net(**x), rtol=0, atol=1e-5
    )


@BACKBONES
def test_rows_do_not_mix(make):
    net, x = make(8), inputs()
    one = net(**{name: value[2:3] for name, value in x.items()})
    torch.testing.assert_close(one, net(**x)[2:3], rtol=0, atol=1e-5)


@BACKBONES
def test_every_parameter_receives_a_gradient(make):
    net = make(8)
    net(**inputs()).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_unet_tells_conditions_apart_that_a_bare_mish_would_fold():
    # mish falls to -.31 at -1.19 and rises again: mish(-.5) = -.22 = mish(-2.2)
    low, high = torch.tensor(-6.0, dtype=torch.float64), torch.tensor(-1.2, dtype=torch.float64)
    wanted = torch.nn.functional.mish(torch.tensor(-0.5, dtype=torch.float64))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if torch.nn.functional.mish(middle) < wanted else (middle, high)
    assert -2.3 < low < -2.1
    net = ShortCutVelocityUNet1D(A, 4)
    one, other = net.condition(torch.full((1, 4), -0.5)), net.condition(torch.full((1, 4), float(low)))
    assert (one - other).abs().max() > 0.01


def test_unet_names_the_divisor_of_the_chunk_length():
    # 3 levels halve twice: 2**2 = 4 must divide the chunk length
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        make_unet(6)(**inputs(6))


@pytest.mark.parametrize("make", [make_mlp, make_preact, make_transformer, make_dit])
def test_a_net_of_a_fixed_horizon_refuses_another_chunk_shape(make):
    with pytest.raises(ValueError, match=r"shape \(8, 7\), got \(4, 7\)"):
        make(8)(**inputs(4))


def test_default_unet_has_three_levels_and_default_mlp_a_third_of_a_million_parameters():
    unet = ShortCutVelocityUNet1D(A, 84)
    assert [level[1].second[0].out_channels for level in unet.down] == [64, 128, 256]
    mlp = ShortCutVelocityMLP(A, 16, 84)
    # 256 * (16*7 in + 16*7 out + 84 cond + 2*64 times + 3 * 256) = 308,224, plus biases, norms and time embeddings
    assert 308_224 < sum(p.numel() for p in mlp.parameters()) < 3.6e5


WAYS = ("forward", "by_windows", "dense")


def same_in_value_and_gradient(conv: torch.nn.Module, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    upstream = torch.randn_like(theirs)
    gradients = (torch.autograd.grad(values, conv.parameters(), upstream) for values in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=max(1e-4, 1e-5 * other.abs().max().item()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 16])
@pytest.mark.parametrize(("rows", "kernel"), [(1, 5), (17, 5), (256, 5), (17, 1), (17, 3)])
def test_every_way_to_convolve_equals_torch_in_value_and_gradient(way, length, rows, kernel):
    torch.manual_seed(0)
    conv, x = LocalConv1d(6, 5, kernel), torch.randn(rows, 6, length)
    plain = torch.nn.functional.conv1d(x, conv.weight, conv.bias, padding=kernel // 2)
    same_in_value_and_gradient(conv, getattr(conv, way)(x), plain)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_levels_are_halved_and_doubled_by_windows_as_by_torch(length):
    torch.manual_seed(0)
    x = torch.randn(3, 4, length)
    for conv in (Downsample(4), Upsample(4)):
        same_in_value_and_gradient(conv, conv.by_windows(x), conv(x))


@pytest.mark.parametrize(("rows", "length", "way"), [
    (16, 16, "by_windows"), (17, 16, None), (17, 8, None), (17, 4, "by_windows"), (256, 4, "dense"),
    (64, 2, "dense"), (63, 2, "by_windows"),
])  # fmt: skip
def test_a_convolution_on_a_cpu_takes_the_way_that_was_fastest_for_its_size(monkeypatch, rows, length, way):
    taken = []
    for name in ("by_windows", "dense"):
        monkeypatch.setattr(LocalConv1d, name, lambda conv, x, name=name: taken.append(name))
    LocalConv1d(3, 3, 5)(torch.zeros(rows, 3, length))
    assert taken == ([] if way is None else [way])


def test_a_matrix_of_taps_that_is_too_large_is_not_made(monkeypatch):
    monkeypatch.setattr(LocalConv1d, "most_taps", 4 * 4 * 3 * 3 - 1)
    monkeypatch.setattr(LocalConv1d, "dense", lambda *_: pytest.fail("made"))
    assert LocalConv1d(3, 3, 5)(torch.zeros(256, 3, 4)).shape == (256, 3, 4)


def test_few_and_many_rows_give_the_same_velocity():
    # at a chunk of 8 the middle of a 3-level UNet is 2 long: windows for 5 rows, dense products for 5 * 20 = 100
    net, x = make_unet(8), inputs()
    many = net(**{name: value.repeat(20, *[1] * (value.dim() - 1)) for name, value in x.items()})
    torch.testing.assert_close(many[:B], net(**x), rtol=0, atol=1e-5)
    one = net(**{name: value[:1] for name, value in x.items()})
    torch.testing.assert_close(one, many[:1], rtol=0, atol=1e-5)


def test_embedding_by_hand():
    # dim 4: frequencies 1000 and 1000 / 1e4 = 0.1; at 1e-3 the phases are 1 and 1e-4 rad
    out = SinusoidalEmbedding(4)(torch.tensor([0.0, 1e-3]))
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.841471, 1e-4, 0.540302, 1.0]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 7])
def test_embedding_refuses_a_dim_it_cannot_fill(dim):
    with pytest.raises(ValueError, match=f"dim={dim}"):
        SinusoidalEmbedding(dim)
