"""Every algorithm by its name: its flags alone are shown, families that can't are refused, a stopped run goes on."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytest
from torch import Tensor

import evaluate
import train_offline
import train_online
from reinflow.algorithms import OFFLINE, ONLINE, Offline, OnPolicy, able_families, check_family
from reinflow.cli import parse
from reinflow.errors import UserError
from reinflow.policies import FAMILIES
from reinflow.runtime import interrupts
from reinflow.runtime.interrupts import Interrupted
from reinflow.storage.checkpoint import load_checkpoint
from reinflow.training.config import OffPolicyConfig, OnPolicyConfig
from tests.small import EVALUATION, NET, demo_file, run_stage
from tests.small import OFFLINE as OFFLINE_RHYTHM
from tests.small import ONLINE as ON_POLICY_RHYTHM
from tests.test_resume import assert_equal, logged, stop_at

ROOT = Path(__file__).resolve().parent.parent
FROM_SCRATCH = ["--pretrained_path", "None", "--env_id", "Toy-v0", "--family", "ddpm", *NET]
SMALL_QS = ["--num_qs", "3", "--q_hidden_dim", "16"]
OFF_POLICY_RHYTHM = ["--num_envs", "4", "--total_timesteps", "160", "--learning_starts", "12", "--batch_size", "8",
                     "--updates_at_start", "2", "--updates_per_step", "2", "--log_freq", "3", "--eval_freq", "4",
                     "--save_freq", "3"]  # fmt: skip
GROUPS = ["--num_envs", "4", "--group", "2", "--total_timesteps", "288", "--minibatch_size", "8", "--epochs", "2",
          "--eval_freq", "2", "--save_freq", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations and a clone of them."""
    folder = tmp_path_factory.mktemp("algorithms")
    demo_file(folder)
    run_stage(1, folder, "start")
    return folder


def flags(folder: Path, script, algorithm: str, name: str) -> list[str]:
    words = ["--algorithm", algorithm, "--exp_name", name, "--runs_dir", str(folder / "runs"), "--no-cuda", *EVALUATION,
             "--pretrained_path", str(folder / "runs" / "start"), "--demo_path", str(folder / "demos.h5")]  # fmt: skip
    if script is train_offline:
        return words + OFFLINE_RHYTHM + ([] if "shortcut" in able_families(OFFLINE[algorithm]) else FROM_SCRATCH)
    if algorithm == "grpo":
        return words + GROUPS
    return words + (ON_POLICY_RHYTHM if isinstance(ONLINE[algorithm], OnPolicy) else OFF_POLICY_RHYTHM + SMALL_QS)


def run(script, words: list[str]) -> None:
    config = parse(script.Config, words)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        script.main(config)


def undocumented(lines: list[dict[str, float]]) -> set[str]:
    """Logged names that neither page of metrics explains."""
    text = "".join((ROOT / "docs" / page).read_text() for page in ("metrics.md", "algorithms_guide.md"))
    return {name for line in lines for name in line if "/" in name and f"`{name}`" not in text}


@pytest.mark.parametrize("algorithm", ["dql", "ogpo", "grpo"])  # of the others, the learners alone are stopped
def test_a_stopped_online_run_goes_on_to_the_bit(folder, monkeypatch, algorithm):
    whole, stopped = f"{algorithm}-whole", f"{algorithm}-stopped"
    run(train_online, flags(folder, train_online, algorithm, whole))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(interrupts, "check", stop_at(13))
        run(train_online, flags(folder, train_online, algorithm, stopped))
    run(train_online, ["--algorithm", algorithm, "--resume", str(folder / "runs" / stopped)])
    assert_equal(folder, whole, stopped)
    lines = logged(folder / "runs" / whole)
    assert lines == logged(folder / "runs" / stopped)
    assert undocumented(lines) == set()
    # episodes of 24 env steps end after 6 decisions, so the lines after them compare Q with what followed
    assert any("losses/q_bias" in line for line in lines) == (algorithm != "grpo")


def test_a_stopped_offline_run_of_the_most_parts_goes_on_to_the_bit(folder, monkeypatch):
    run(train_offline, flags(folder, train_offline, "fql", "offline-whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(interrupts, "check", stop_at(7))
        run(train_offline, flags(folder, train_offline, "fql", "offline-stopped"))
    run(train_offline, ["--algorithm", "fql", "--resume", str(folder / "runs" / "offline-stopped")])
    assert_equal(folder, "offline-whole", "offline-stopped")
    assert load_checkpoint(folder / "runs" / "offline-whole").policy_spec.num_inference_steps == 1


@pytest.mark.parametrize("algorithm", OFFLINE)
def test_an_offline_run_keeps_a_policy_and_its_critics(folder, algorithm):
    run(train_offline, flags(folder, train_offline, algorithm, algorithm))
    checkpoint = load_checkpoint(folder / "runs" / algorithm)
    assert (checkpoint.objective is not None) == OFFLINE[algorithm].rewards
    # what weighs returns has no critics
    assert ("q" in checkpoint.parts) == (algorithm not in ("bc", "rwr"))


def test_stage_three_by_its_name_is_stage_three(folder):
    run_stage(3, folder, "stage3")
    run(train_online, flags(folder, train_online, "ppo", "ppo"))
    mine, theirs = (load_checkpoint(folder / "runs" / name).policy_state for name in ("ppo", "stage3"))
    assert all((mine[name] == theirs[name]).all() for name in mine)


@pytest.mark.parametrize(("algorithm", "own", "other"), [("dql", "updates_per_step", "rollout_steps"),
                                                          ("ppo", "clip_ratio", "updates_per_step")])  # fmt: skip
def test_help_shows_the_flags_of_the_algorithm_and_of_its_loop_alone(capsys, algorithm, own, other):
    with pytest.raises(SystemExit):
        parse(train_online.Config, ["--algorithm", algorithm, "--help"])
    shown = capsys.readouterr().out
    assert f"--{own}" in shown
    assert f"--{other} " not in shown


def test_flags_of_another_algorithm_or_loop_are_refused_with_its_name():
    with pytest.raises(UserError, match="--rollout_steps belongs to --algorithm ppo"):
        parse(train_online.Config, ["--algorithm", "dql", "--rollout_steps", "3"])
    with pytest.raises(UserError, match="--weight_clip belongs to --algorithm awr"):
        parse(train_offline.Config, ["--algorithm", "bc", "--weight_clip", "3"])


@runtime_checkable
class Averaged(Protocol):
    """What has a `mean`: Gaussians and their mixtures."""

    def mean(self, cond: Tensor) -> Tensor: ...


def test_a_family_without_the_capability_is_refused_with_those_that_have_it():
    entry = Offline(lambda policy, options, setting: None, needs=(Averaged,))  # type: ignore[arg-type,return-value]
    assert able_families(entry) == ["gaussian", "gmm"]
    with OFFLINE.having("rare", entry):
        check_family(OFFLINE, "rare", "gmm")
        with pytest.raises(UserError, match="needs a policy that is Averaged.*shortcut is not: it takes gaussian, gmm"):
            check_family(OFFLINE, "rare", "shortcut")
    assert able_families(OFFLINE["bc"]) == list(FAMILIES)


def test_every_loop_of_an_online_algorithm_is_one_of_the_two():
    assert all(issubclass(entry.loop, OnPolicyConfig | OffPolicyConfig) for entry in ONLINE.values())


def test_config_json_holds_what_the_checkpoint_decided(folder):
    run(train_online, flags(folder, train_online, "dql", "settled"))
    saved = json.loads((folder / "runs" / "settled" / "config.json").read_text())["flags"]
    assert (saved["gamma"], saved["reward_mode"], saved["algorithm"]) == (0.97, "normalized_dense", "dql")


def evaluation(folder: Path, name: str, *more: str) -> dict:
    out = folder / "evaluations" / "-".join([name, *more])
    words = ["--checkpoint", str(folder / "runs" / name), "--output_dir", str(out), "--no-cuda", *EVALUATION, *more]
    run(evaluate, words)
    return json.loads((out / "evaluation.json").read_text())["results"][0]


def test_an_evaluation_chooses_by_any_stored_q_and_as_the_checkpoint_says_by_itself(folder):
    run(train_online, flags(folder, train_online, "idql", "chooses"))
    by_itself, alone = evaluation(folder, "chooses"), evaluation(folder, "chooses", "--best_of", "1")
    assert (by_itself["best_of"], alone["best_of"]) == (16, 1)
    assert by_itself["return"] != alone["return"]
    with pytest.raises(UserError, match="holds no Q"):
        evaluation(folder, "start", "--best_of", "4")
