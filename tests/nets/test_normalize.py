"""Normalisers: exact on small numbers, invertible, safe on constant dimensions, carried by the state dict."""

from __future__ import annotations

import pytest
import torch

from nets import MeanStdNormalizer, MinMaxNormalizer
from nets.normalize import PictureNormalizer, RunningMoments

BOTH = pytest.mark.parametrize("cls", [MeanStdNormalizer, MinMaxNormalizer])


def data() -> torch.Tensor:
    rows = torch.rand(7, 9, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return rows * torch.tensor([0.02, 1.0, 0.0]) + torch.tensor([0.3, 0.0, 0.5])


def test_mean_and_std_by_hand():
    # mean 2, deviations -1 and 1 -> std 1
    normalizer = MeanStdNormalizer.from_data(torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(normalizer.normalize(torch.tensor([[5.0]])), torch.tensor([[3.0]]))


def test_min_and_max_by_hand():
    # range [-1, 3]: centre 1, half range 2; 3 -> 1, -1 -> -1, 2 -> .5
    normalizer = MinMaxNormalizer.from_data(torch.tensor([[-1.0], [3.0]]))
    out = normalizer.normalize(torch.tensor([[3.0], [-1.0], [2.0]]))
    torch.testing.assert_close(out, torch.tensor([[1.0], [-1.0], [0.5]]))


@BOTH
def test_round_trip_is_exact_to_a_millionth(cls):
    normalizer = cls.from_data(data())
    back = normalizer.denormalize(normalizer.normalize(data()))
    torch.testing.assert_close(back, data(), rtol=0, atol=1e-6)


@BOTH
def test_a_constant_dimension_maps_to_zero_and_is_divided_by_the_floor(cls):
    normalizer = cls.from_data(data())
    out = normalizer.normalize(data())
    assert (out[..., 2].abs() < 1e-4).all()
    # .5 + .01 is one floor of .01 away
    torch.testing.assert_close(
        normalizer.normalize(torch.tensor([0.3, 0.0, 0.51]))[2], torch.tensor(1.0), atol=1e-4, rtol=0
    )


def test_actions_fill_minus_one_to_one():
    out = MinMaxNormalizer.from_data(data()).normalize(data()).flatten(0, 1)
    torch.testing.assert_close(out[:, :2].amax(0), torch.ones(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(out[:, :2].amin(0), -torch.ones(2), rtol=0, atol=1e-5)


def test_a_dimension_that_never_moves_does_not_vary():
    actions = torch.tensor([[0.0, 0.5, -1.0], [0.0, 0.5, 1.0]])
    assert MinMaxNormalizer.from_data(actions).varies.tolist() == [False, False, True]
    assert MinMaxNormalizer(3).varies.all()


def test_statistics_of_a_large_offset_keep_their_precision():
    # float32 sums over 1e5 rows at 1000 would lose the std of .1
    rows = 1000 + 0.1 * torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(MeanStdNormalizer.from_data(rows).scale, torch.tensor([0.1]), rtol=0.01, atol=0)


@BOTH
def test_the_state_dict_carries_the_statistics(cls):
    fitted, fresh = cls.from_data(data()), cls(3)
    torch.testing.assert_close(fresh.normalize(data()), data(), rtol=0, atol=0)
    fresh.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(fresh.normalize(data()), fitted.normalize(data()), rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (torch.zeros(4, 2), "rows of 3 numbers"),
        (torch.zeros(0, 3), "rows of 3 numbers"),
        (torch.full((4, 3), float("nan")), "NaN or infinite"),
    ],
)
def test_data_that_cannot_be_fitted_is_refused(cls, rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        cls(3).fit_(rows)


def test_a_picture_loses_its_background_and_keeps_what_differs():
    # one pixel of four differs, by -1 and +1: squares 1, 0, 0, 0 have mean 1/4, so std 1/2 and values -2 and 2
    background = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    change = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    pictures = torch.stack((background - change, background + change))[:, None]
    normalizer = PictureNormalizer(1, 2, 2)
    torch.testing.assert_close(normalizer.normalize(pictures), pictures)
    normalizer.fit_(pictures)
    torch.testing.assert_close(normalizer.normalize(pictures)[:, 0], torch.stack((-2 * change, 2 * change)))


def test_running_moments_are_those_of_all_rows_so_far():
    # 0 and 2 (mean 1, std 1), then 4 and 8 and 1: together mean 3, squares 9 + 1 + 1 + 25 + 4 = 40 -> std sqrt(8)
    moments = RunningMoments(1)
    for rows in ([0.0, 2.0], [4.0, 8.0, 1.0]):
        column = torch.tensor(rows, dtype=torch.float64)[:, None]
        mean, std = moments.add_(column.mean(0), column.std(0, correction=0), len(column))
    torch.testing.assert_close(mean, torch.tensor([3.0], dtype=torch.float64))
    torch.testing.assert_close(std, torch.tensor([8.0**0.5], dtype=torch.float64))
