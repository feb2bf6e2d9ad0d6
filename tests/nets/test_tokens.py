"""Nets of tokens: how a condition is cut up, attention against torch's own, and what each net starts as."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets import (
    CondLayout,
    CrossAttentionDiT,
    DiTConfig,
    Part,
    PreactMLPConfig,
    PreactVelocityMLP,
    TransformerConfig,
    VelocityTransformer,
)
from nets.attention import CrossAttention, Memory, SelfAttention
from nets.dit import DiTBlock
from nets.tokens import ConditionTokens

LAYOUT = CondLayout(frames=2, parts=(Part(1, 3), Part(2, 4)))  # frames of 3 + 8 numbers, 22 in all, 6 tokens


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_a_condition_becomes_the_tokens_of_its_frames_oldest_first():
    assert (LAYOUT.cond_dim, LAYOUT.tokens) == (22, 6)
    net = ConditionTokens(LAYOUT, width=4)
    cond = torch.randn(5, 22)
    state, picture = net.embed
    # frame 0: state 0-2, picture tokens 3-6 and 7-10; frame 1: 11-13, 14-17, 18-21
    spans = [(state, 0, 3), (picture, 3, 7), (picture, 7, 11), (state, 11, 14), (picture, 14, 18), (picture, 18, 22)]
    expected = torch.stack([layer(cond[:, low:high]) for layer, low, high in spans], 1) + net.place
    torch.testing.assert_close(net(cond), expected)


def test_a_condition_of_another_length_is_refused():
    with pytest.raises(ValueError, match="22 numbers, got 21"):
        ConditionTokens(LAYOUT, width=4)(torch.randn(5, 21))


def test_self_attention_equals_torchs_own():
    ours, theirs = SelfAttention(16, heads=4), nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])
    fused = SelfAttention(16, heads=4, attention=F.scaled_dot_product_attention)
    fused.load_state_dict(ours.state_dict())
    torch.testing.assert_close(fused(x), ours(x))


def test_cross_attention_by_hand():
    # one head of width 1, identity projections: weights are softmax(1 * 0, 1 * ln 3) = (1/4, 3/4) over values 8 and 4
    layer = CrossAttention(1, heads=1)
    for linear in (layer.query, layer.out):
        nn.init.ones_(linear.weight)
        nn.init.zeros_(linear.bias)
    keys, values = torch.tensor([0.0, math.log(3)]), torch.tensor([8.0, 4.0])
    memory = torch.stack((keys, values)).reshape(2, 1, 1, 2, 1)
    assert layer(torch.ones(1, 1, 1), memory).item() == pytest.approx(8 / 4 + 4 * 3 / 4)


def test_a_memory_gives_every_block_its_keys_and_values_by_head():
    # the layer's rows are block by block, in each the keys of all heads, then the values
    memory, tokens = Memory(6, heads=2, depth=3), torch.randn(4, 5, 6)
    blocks = memory.read(memory(tokens))
    assert len(blocks) == 3
    for block in range(3):
        for which in range(2):
            for head in range(2):
                rows = slice(12 * block + 6 * which + 3 * head, 12 * block + 6 * which + 3 * head + 3)
                expected = tokens @ memory.weight[rows].T + memory.bias[rows]
                torch.testing.assert_close(blocks[block][which][:, head], expected)


def test_heads_that_do_not_divide_the_width_are_refused():
    for make in (
        lambda: VelocityTransformer(7, 8, LAYOUT, TransformerConfig(transformer_dim=30)),
        lambda: CrossAttentionDiT(7, 8, LAYOUT, DiTConfig(dit_dim=30)),
    ):
        with pytest.raises(ValueError, match="30 can't be split over 4 heads"):
            make()


def test_a_dit_block_is_shift_scale_and_gate_of_three_layers_in_turn():
    block, x, memory = DiTBlock(8, heads=2), torch.randn(3, 5, 8), torch.randn(2, 3, 2, 4, 4)
    shares = torch.randn(3, 9 * 8)
    vectors = iter(shares.split(8, dim=1))
    expected = x
    for layer in (block.among, lambda y: block.across(y, memory), block.feed_forward):
        shift, scale, gate = (next(vectors)[:, None] for _ in range(3))
        expected = expected + gate * layer(F.layer_norm(expected, (8,)) * (1 + scale) + shift)
    torch.testing.assert_close(block(x, shares, memory), expected)


def test_a_new_dit_is_its_first_and_last_layer():
    # adaLN-zero: every gate is 0, so every block is the identity, and so is the modulation before the last layer
    net = CrossAttentionDiT(7, 8, LAYOUT)
    sample = torch.randn(3, 8, 7)
    expected = net.out(F.layer_norm(net.sample_in(sample) + net.place, (128,)))
    out = net(sample, torch.rand(3), torch.rand(3), torch.randn(3, 22))
    torch.testing.assert_close(out, expected)
    out.square().mean().backward()
    assert net.modulation.weight.grad.any()  # and yet the first step opens the gates


@pytest.mark.parametrize("net", [VelocityTransformer, CrossAttentionDiT])
def test_features_of_times_and_condition_are_made_without_the_other(net):
    net = net(7, 8, LAYOUT)
    times, condition = net.times(torch.rand(4), torch.rand(4)), net.condition(torch.randn(3, 22))
    both = net.features(torch.rand(4), torch.rand(4), torch.randn(3, 22))
    assert both.shape == (3, 4, times.shape[1] + condition.shape[1])


def test_default_sizes_are_those_of_the_papers():
    # 4 blocks of DPPO's Transformer, w = 96: 4 w^2 in self-attention, as many in cross-attention, 8 w^2 forward
    transformer = VelocityTransformer(7, 16, LAYOUT)
    assert 16 * 96**2 * 4 < size(transformer) < 1.3 * 16 * 96**2 * 4
    # DMPO's state net for Hopper: 60 -> 512 -> two layers of 512 -> 12, that is 30,720 + 2 * 262,144 + 6,144 weights
    state = PreactVelocityMLP(3, 4, 11)
    assert 561_152 < size(state) < 1.01 * 561_152
    assert len(state.blocks) == 1
    # and for pictures: 197 -> 768 -> 768 -> 768 -> 28 = 151,296 + 2 * 589,824 + 21,504 weights
    pictures = PreactVelocityMLP(7, 4, 137, PreactMLPConfig(preact_hidden_dim=768, preact_cond_dims=()))
    assert 1_352_448 < size(pictures) < 1.01 * 1_352_448


def test_the_preact_mlp_is_dppos_residual_mlp_on_what_it_concatenates():
    # their first layer takes [chunk, time, step, condition], ours has a layer for each; then x + l2(mish(l1(mish(x))))
    net = PreactVelocityMLP(3, 4, 11, PreactMLPConfig(preact_hidden_dim=32))
    sample, t, d, cond = torch.randn(5, 4, 3), torch.rand(5), torch.rand(5), torch.randn(5, 11)
    encoded = net.cond_in[2](F.mish(net.cond_in[0](cond)))  # (64, 16): mish between the two, none after
    together = torch.cat((sample.flatten(1), net.step_embedding(t, d), encoded), 1)
    first = torch.cat((net.sample_in.weight, net.step_in.weight, net.cond_in[3].weight), 1)
    x = F.linear(together, first, net.sample_in.bias)
    _, one, _, two = net.layers[0]
    x = x + two(F.mish(one(F.mish(x))))
    torch.testing.assert_close(net(sample, t, d, cond).flatten(1), net.out(x))


def test_older_frames_are_tokens_of_their_first_part_alone():
    # one frame of 3 numbers before two of 3 + 8: 25 numbers, 7 tokens
    layout = CondLayout(frames=2, parts=LAYOUT.parts, older=1)
    assert (layout.cond_dim, layout.tokens) == (25, 7)
    net, plain = ConditionTokens(layout, width=4), ConditionTokens(LAYOUT, width=4)
    plain.embed = net.embed
    cond = torch.randn(5, 25)
    torch.testing.assert_close(net(cond)[:, 0], net.embed[0](cond[:, :3]) + net.place[0])
    torch.testing.assert_close(net(cond)[:, 1:] - net.place[1:], plain(cond[:, 3:]) - plain.place)
