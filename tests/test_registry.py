"""Only the chosen thing's flags exist, and a choice travels with its options."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest

from reinflow.cli import Flat, as_flags, flat_fields, parse, with_flags
from reinflow.errors import UserError
from reinflow.registry import Choosing, Entry, NoOptions, Registry, options_of


@dataclass(frozen=True)
class RoundConfig:
    """Round things."""

    radius: float = 1.0
    """half its width"""
    sizes: tuple[int, ...] = (1, 2)
    """what it comes in"""


@dataclass(frozen=True)
class SquareConfig:
    """Square things."""

    side: float = 2.0
    """its width"""
    hollow: bool = False
    """nothing inside"""


SHAPES: Registry[str] = Registry("shape", flag="shape")
SHAPES.add("round", Entry(str, RoundConfig))
SHAPES.add("square", Entry(str, SquareConfig))
SHAPES.add("plain", Entry(str))


@dataclass(frozen=True)
class Drawing(Choosing):
    """What is drawn."""

    shape: str = "round"
    """the shape"""
    shape_options: RoundConfig | SquareConfig | NoOptions = options_of(SHAPES)
    ink: str = "black"
    """its colour"""


@dataclass(frozen=True)
class Config:
    """A script."""

    drawing: Flat[Drawing] = field(default_factory=Drawing)
    resume: str | None = None
    """a run"""


PRESETS = {"big": {"shape": "square", "side": 9.0}}


def test_the_chosen_name_decides_which_flags_there_are():
    assert parse(Config, ["--radius", "3"]) == Config(Drawing(shape_options=RoundConfig(3.0)))
    square = Config(Drawing("square", SquareConfig(side=3.0, hollow=True)))
    assert parse(Config, ["--side", "3", "--shape", "square", "--hollow"]) == square
    assert parse(Config, ["--shape=plain"]) == Config(Drawing("plain", NoOptions()))


def test_what_is_parsed_has_the_types_of_the_code():
    config = parse(Config, ["--shape", "square"])
    assert type(config) is Config
    assert type(config.drawing) is Drawing
    assert type(config.drawing.shape_options) is SquareConfig


def test_help_shows_the_chosen_flags_alone(capsys):
    with pytest.raises(SystemExit):
        parse(Config, ["--shape", "square", "--help"])
    shown = capsys.readouterr().out
    assert "--side" in shown
    assert "its width" in shown
    assert "its colour" in shown
    assert "{round,square,plain}" in shown
    assert "--radius" not in shown


@pytest.mark.parametrize("words", [["--side", "3"], ["--side=3"], ["--hollow"], ["--no-hollow"], ["--no_hollow"]])
def test_a_flag_of_another_choice_is_refused_with_its_owner(words):
    with pytest.raises(UserError, match=r"belongs to --shape square and this is --shape round"):
        parse(Config, words)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="round, square, plain"):
        parse(Config, ["--shape", "oval"])


def test_a_preset_chooses_and_flags_win_over_it():
    assert parse(Config, ["--preset", "big"], presets=PRESETS).drawing == Drawing("square", SquareConfig(9.0))
    assert parse(Config, ["--preset", "big", "--shape", "round"], presets=PRESETS).drawing == Drawing()


def test_a_run_is_resumed_with_its_choice(tmp_path):
    config = Config(Drawing("square", SquareConfig(side=4.0)))
    (tmp_path / "config.json").write_text(json.dumps({"flags": dict(flat_fields(config))}))
    assert parse(Config, ["--resume", str(tmp_path)]) == replace(config, resume=str(tmp_path))
    # flags of an earlier version, which saved the options of all shapes
    flags = dict(flat_fields(config)) | {"radius": 1.0, "sizes": [1, 2]}
    (tmp_path / "config.json").write_text(json.dumps({"flags": flags}))
    assert parse(Config, ["--resume", str(tmp_path)]).drawing == config.drawing


def test_flags_turn_one_config_into_another():
    wanted = Config(Drawing("square", SquareConfig(side=4.0), ink="red"))
    words = as_flags(wanted, Config())
    assert words == ["--shape", "square", "--side", "4.0", "--ink", "red"]
    assert parse(Config, words) == wanted


def test_another_choice_starts_from_its_own_defaults():
    changed = with_flags(Config(Drawing(shape_options=RoundConfig(3.0))), {"shape": "square"})
    assert changed.drawing.shape_options == SquareConfig()
    assert with_flags(Config(), {"radius": 5.0}).drawing.shape_options == RoundConfig(5.0)
    with pytest.raises(ValueError, match="no flag side"):
        with_flags(Config(), {"side": 5.0})


def test_options_of_another_entry_are_refused_in_code():
    with pytest.raises(TypeError, match="must be RoundConfig, got SquareConfig"):
        Drawing("round", SquareConfig())


def test_an_entry_is_one_line():
    with SHAPES.having("oval", Entry(str, SquareConfig)):
        assert parse(Config, ["--shape", "oval", "--side", "7"]).drawing.shape_options == SquareConfig(7.0)
    with pytest.raises(UserError, match="no shape 'oval'"):
        parse(Config, ["--shape", "oval"])


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="already"):
        SHAPES.add("round", Entry(str))
