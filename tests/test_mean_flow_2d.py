"""The checkerboard demo: its data and its distance by hand, and a run of it that takes no time."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

from reinflow.cli import parse
from reinflow.errors import UserError

PATH = Path(__file__).resolve().parents[1] / "examples" / "mean_flow_2d.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("mean_flow_2d", PATH)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["mean_flow_2d"] = module
    spec.loader.exec_module(module)
    return module


def test_every_other_of_16_squares_holds_an_eighth_of_the_points(demo):
    torch.manual_seed(0)
    points = demo.checkerboard(8_000)
    squares = ((points + 1) * 2).floor().long()
    assert ((squares >= 0) & (squares < 4)).all()
    assert (squares.sum(1) % 2 == 0).all()
    counts = (4 * squares[:, 0] + squares[:, 1]).bincount(minlength=16)
    assert (counts > 0).sum() == 8
    assert counts[counts > 0].min() > 850  # of 1000, whose std is 30


def test_mmd_of_two_pairs_by_hand(demo):
    # two points at 0 against two at 1 in x: within each k = 1, between them exp(-1 / (2 w^2)) in the mean of widths w
    between = sum(math.exp(-1 / (2 * width**2)) for width in demo.BANDWIDTHS) / len(demo.BANDWIDTHS)
    first, second = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert demo.mmd(first, second) == pytest.approx(math.sqrt(1 + 1 - 2 * between), rel=1e-5)
    assert demo.mmd(first, first) == 0


def test_mmd_tells_a_full_square_from_the_board_and_not_two_boards(demo):
    torch.manual_seed(0)
    board = demo.checkerboard(2_000)
    assert demo.mmd(demo.checkerboard(2_000), board) < 0.03
    assert demo.mmd(2 * torch.rand(2_000, 2) - 1, board) > 0.05


def test_all_that_start_from_noise_are_generative(demo):
    assert demo.generative_families() == (
        "shortcut", "reflow", "meanflow", "improved_meanflow", "consistency", "ddpm",
    )  # fmt: skip


def test_it_writes_one_figure_and_a_row_for_every_family_and_number_of_steps(demo, tmp_path, capsys):
    words = ["--families", "reflow", "consistency", "--iterations", "3", "--batch_size", "16", "--samples", "64"]
    demo.main(parse(demo.Config, [*words, "--hidden_dim", "8", "--output_dir", str(tmp_path)]))
    assert "reflow" in capsys.readouterr().out
    written = json.loads((tmp_path / "mean_flow_2d.json").read_text())
    assert [(row["family"], row["steps"]) for row in written["rows"]] == [
        (family, steps) for family in ("reflow", "consistency") for steps in (1, 2, 4, 8)
    ]
    assert all(row["mmd"] > 0 for row in written["rows"])
    assert (tmp_path / "mean_flow_2d.png").stat().st_size > 5_000


@pytest.mark.parametrize("family", ["mip", "nonsense"])
def test_a_family_without_noise_is_refused(demo, family):
    with pytest.raises(UserError, match=f"--families {family}"):
        demo.main(parse(demo.Config, ["--families", family]))
