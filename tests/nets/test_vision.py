"""Pixels, random shifts and encoders."""

from __future__ import annotations

import pytest
import torch

from nets.vision import (
    PlainConv,
    ResNet18,
    expected_coordinates,
    pixel_channels,
    pixels,
    random_shift,
)
from nets.vit import ViT


def test_rgb_survives_the_way_to_the_network_and_back():
    rgb = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(1, 2, 16, 16, 3)
    picture = pixels(rgb, None, max_depth=2.0)
    assert picture.shape == (1, 6, 16, 16)
    back = (picture * 255).reshape(1, 2, 3, 16, 16).movedim(2, -1)
    assert (back - rgb.float()).abs().max() < 1e-4  # of 255: 4e-7 of the range
    assert picture.max() == 1.0


def test_depth_is_a_share_of_the_range_and_invalid_pixels_say_so():
    # 500 mm of 2 m = .25, 3 m is beyond the range, 0 hit nothing, -5 overflowed int16
    depth = torch.tensor([500, 3000, 0, -5], dtype=torch.int16).reshape(1, 1, 2, 2, 1)
    share, valid = pixels(None, depth, max_depth=2.0)[0]
    torch.testing.assert_close(share, torch.tensor([[0.25, 1.0], [0.0, 0.0]]))
    assert valid.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_channels_count_cameras_colours_and_depth():
    rgb = torch.zeros(5, 2, 3, 8, 8, 3, dtype=torch.uint8)
    depth = torch.zeros(5, 2, 3, 8, 8, 1, dtype=torch.int16)
    for args, wanted in (((rgb, None), 9), ((None, depth), 6), ((rgb, depth), 15)):
        assert pixels(*args, max_depth=2.0).shape == (5, 2, wanted, 8, 8)
        assert pixel_channels(3, args[0] is not None, args[1] is not None) == wanted


def test_a_picture_reaches_convolutions_channels_last():
    picture = pixels(torch.zeros(4, 1, 16, 16, 3, dtype=torch.uint8), None, max_depth=2.0)
    assert picture.is_contiguous(memory_format=torch.channels_last)


def test_a_shift_moves_all_of_a_row_together_and_repeats_edges():
    ramp = torch.arange(8, dtype=torch.uint8)
    rgb = ramp.expand(8, 8)[..., None].expand(64, 2, 1, 8, 8, 1)  # value = column
    depth = ramp[:, None].expand(8, 8)[..., None].to(torch.int16).expand(64, 2, 1, 8, 8, 1)  # value = row
    moved = random_shift({"rgb": rgb, "depth": depth}, most=2, generator=torch.Generator().manual_seed(0))
    assert moved["rgb"].dtype == torch.uint8
    assert moved["depth"].dtype == torch.int16
    assert moved["rgb"].shape == rgb.shape
    across = moved["rgb"][:, 0, 0, 0, 3, 0].int() - 3  # away from the edges, by how many columns a row moved
    down = moved["depth"][:, 0, 0, 3, 0, 0].int() - 3
    assert set(across.tolist()) == set(down.tolist()) == {-2, -1, 0, 1, 2}
    for row in range(64):
        columns = (torch.arange(8) + across[row]).clamp(0, 7)
        rows = (torch.arange(8) + down[row]).clamp(0, 7)
        for frame in range(2):
            assert torch.equal(moved["rgb"][row, frame, 0, :, :, 0].long(), columns.expand(8, 8))
            assert torch.equal(moved["depth"][row, frame, 0, :, :, 0].long(), rows[:, None].expand(8, 8))


def test_a_shift_of_zero_is_the_picture():
    rgb = torch.randint(0, 256, (3, 1, 2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(random_shift({"rgb": rgb}, most=0)["rgb"], rgb)


def test_expected_coordinates_find_the_peak():
    maps = torch.full((1, 1, 5, 5), -50.0)
    maps[0, 0, 4, 1] = 50.0  # the last row, the second of five columns
    torch.testing.assert_close(expected_coordinates(maps), torch.tensor([[-0.5, 1.0]]))


@pytest.mark.parametrize("kind", [PlainConv, ResNet18, ViT])
def test_an_encoder_takes_any_size_and_all_of_it_learns(kind: type):
    encoder = kind(5, 7, (48, 64))
    picture = torch.rand(2, 5, 48, 64)
    out = encoder(picture)
    assert out.shape == (2, 7)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("kind", [PlainConv, ResNet18, ViT])
def test_rows_do_not_mix(kind: type):
    encoder = kind(3, 4, (32, 32)).eval()
    picture = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(encoder(picture)[1:2], encoder(picture[1:2]), rtol=1e-4, atol=1e-5)


def test_too_small_pictures_are_refused():
    with pytest.raises(ValueError, match="16 x 16 or larger"):
        PlainConv(3, 8, (8, 64))
    with pytest.raises(ValueError, match="32 x 32 or larger"):
        ResNet18(3, 8, (16, 64))
    with pytest.raises(ValueError, match="16 x 16 or larger"):
        ViT(3, 8, (15, 64))


@pytest.mark.parametrize("encoder", [PlainConv, ViT])
def test_a_new_encoder_passes_on_as_much_as_it_gets(encoder):
    # He initialisation: unit pictures give features of about unit size, where torch's default leaves hundredths
    torch.manual_seed(0)
    features = encoder(3, 64, (64, 64))(torch.randn(32, 3, 64, 64))
    assert 0.3 < features.std() < 3


@pytest.mark.parametrize(("size", "patches"), [((16, 16), 1), ((64, 64), 49), ((96, 96), 121), ((48, 70), 35)])
def test_vit_has_a_place_for_every_patch(size, patches):
    # 64: (64 - 8) / 4 + 1 = 15 windows, (15 - 3) / 2 + 1 = 7 of them: 49; 48 x 70: 11 and 16 windows, 5 and 7 of them
    assert len(ViT(3, 8, size).place) == patches
    assert ViT(3, 8, size)(torch.rand(2, 3, *size)).shape == (2, 8)
