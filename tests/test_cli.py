from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from reinflow.cli import Flat, as_flags, check_unique_flags, parse, run_script, with_flags
from reinflow.errors import UserError


@dataclass(frozen=True)
class Inner:
    """Inner settings."""

    num_envs: int = 3
    """envs side by side"""
    track: bool = False
    """log to wandb"""
    dims: tuple[int, ...] = (1, 2)
    """widths"""
    name: str | None = None
    """a name"""
    film: bool | None = None
    """a switch that may be left open"""


@dataclass(frozen=True)
class Config:
    """A script."""

    inner: Flat[Inner] = field(default_factory=Inner)
    lr: float = 1e-3
    """learning rate"""


@dataclass(frozen=True)
class Twice:
    """Two owners of one flag."""

    inner: Flat[Inner] = field(default_factory=Inner)
    num_envs: int = 1


PRESETS = {"big": {"num_envs": 256, "track": True}, "wide": Config(inner=Inner(dims=(4, 8)))}


def test_nested_configs_are_flat_flags_in_both_spellings():
    assert parse(Config, ["--num_envs", "5", "--lr", "0.1"]) == Config(inner=Inner(num_envs=5), lr=0.1)
    assert parse(Config, ["--num-envs", "5"]) == parse(Config, ["--num_envs", "5"])


def test_a_bool_is_a_pair_of_flags():
    assert parse(Config, ["--track"]).inner.track
    assert not parse(Config, ["--track", "--no-track"]).inner.track
    assert not parse(Config, ["--no_track"]).inner.track


def test_a_bool_that_may_be_left_open_is_the_same_pair_of_flags():
    films = {
        None: [[], ["--film", "None"]],
        True: [["--film"], ["--film", "True"], ["--film", "--lr", "1"]],
        False: [["--no-film"], ["--no_film"], ["--film", "False"], ["--film", "--no-film"]],
    }
    for wanted, ways in films.items():
        assert [parse(Config, words).inner.film for words in ways] == [wanted] * len(ways)
    config = Config(inner=Inner(film=False))
    assert parse(Config, as_flags(config, Config())) == config


def test_tuples_and_none_parse():
    config = parse(Config, ["--dims", "64", "128", "256", "--name", "None"])
    assert config.inner.dims == (64, 128, 256)
    assert config.inner.name is None


def test_a_preset_replaces_defaults_and_flags_win_over_it():
    config = parse(Config, ["--num_envs", "7", "--preset", "big"], presets=PRESETS)
    assert config == Config(inner=Inner(num_envs=7, track=True))
    assert parse(Config, ["--preset=wide"], presets=PRESETS).inner.dims == (4, 8)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="big, wide"):
        parse(Config, ["--preset", "bigger"], presets=PRESETS)


def test_help_shows_what_a_preset_holds(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Config, ["--help"], presets=PRESETS)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "big: --num_envs 256 --track" in shown
    assert "wide: --dims 4 8" in shown


def test_flags_of_a_config_parse_back_to_it():
    config = Config(inner=Inner(num_envs=9, track=True, dims=(5,), name="x"), lr=0.5)
    assert parse(Config, as_flags(config, Config())) == config


def test_a_preset_with_a_misspelt_flag_is_a_bug_that_shows():
    with pytest.raises(ValueError, match="num_env"):
        with_flags(Config(), {"num_env": 3})


def test_two_equal_flags_are_an_error_at_start():
    with pytest.raises(ValueError, match="--num_envs is defined by both Inner and Twice"):
        check_unique_flags(Twice)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no demos at x: collect some"), 2, "error: no demos at x: collect some"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_an_exit_code(capsys, error, code, said):
    def main(config: Config) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_script(main, Config, argv=[])
    assert caught.value.code == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_a_script_that_loads_for_long_says_so_before_it_does(capsys):
    said: list[str] = []
    run_script(lambda config: said.append(capsys.readouterr().out), Config, loads="torch", argv=[])
    assert said == ["A script: loading torch\n"]


def test_arguments_that_do_not_parse_exit_2():
    for argv in (["--nonsense"], ["--lr", "fast"], ["--preset"]):
        with pytest.raises(SystemExit) as caught:
            run_script(lambda config: None, Config, argv=argv, presets=PRESETS)
        assert caught.value.code == 2


@pytest.mark.parametrize(
    "module", ["reinflow.cli", "reinflow.sweep.monitor", "reinflow.sweep.local", "reinflow.report"]
)
def test_command_lines_and_sweeps_need_neither_torch_nor_simulator(module):
    heavy = {"torch", "mani_skill", "sapien", "gymnasium", "pandas", "scipy", "matplotlib", "ray"}
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


HELP = (
    "from reinflow.sweep.monitor import main, Config; from reinflow.cli import run_script; "
    "run_script(main, Config, argv=['--help'])"
)


@pytest.mark.parametrize("module", ["doctor", "foreign", "report", "sweep", "sweep.monitor"])
def test_each_command_of_the_package_shows_its_help_and_refuses_nonsense(module):
    for argument, code in (("--help", 0), ("--nonsense", 2)):
        done = subprocess.run(
            [sys.executable, "-m", f"reinflow.{module}", argument], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_output_that_nobody_reads_ends_quietly():
    with subprocess.Popen(
        [sys.executable, "-c", HELP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(("redirection", "code", "said"), [(">&-", 0, ""), (">/dev/full", 2, "No space left")])
def test_output_that_is_closed_or_full_is_no_traceback(redirection, code, said):
    command = f'exec "$0" -c "$1" {redirection}'
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # unbuffered output would hide what fails at the end
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, HELP], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == (1 if said else 0)


def test_a_file_that_the_disk_refuses_is_a_sentence(capsys):
    def main(config: Config) -> None:
        raise PermissionError(13, "Permission denied", "/data/runs")

    with pytest.raises(SystemExit) as caught:
        run_script(main, Config, argv=[])
    assert caught.value.code == 2
    assert "/data/runs can't be written or read (Permission denied)" in capsys.readouterr().err
