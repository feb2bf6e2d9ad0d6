"""The scripts as a user runs them: one short pass through all stages on real ManiSkill, resuming, and wrong input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from reinflow.runtime.interrupts import EXIT_CODES
from reinflow.runtime.trees import split
from reinflow.storage.checkpoint import load_checkpoint
from reinflow.storage.resumable import latest_training, states
from tests.faults.strikes import Strike
from tests.scripts import ROOT, run_script

pytestmark = pytest.mark.slow

SMALL_NET = [
    "--net",
    "mlp",
    "--obs_horizon",
    "2",
    "--act_horizon",
    "4",
    "--pred_horizon",
    "8",
    "--mlp_hidden_dim",
    "64",
]
SHORT_EVAL = ["--num_eval_envs", "4", "--num_eval_episodes", "4", "--max_episode_steps", "12"]


def run(folder: Path, script: str, *words: str, strike: Strike | None = None) -> subprocess.CompletedProcess:
    path = str(ROOT / script)
    return run_script(folder, strike.command(path, *words) if strike else [path, *words])


def succeed(folder: Path, *command: str) -> str:
    done = run(folder, *command)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def documented() -> set[str]:
    """Names in docs/metrics.md."""
    return set(
        re.findall(r"`((?:eval|rollout|losses|policy|charts|time)/\w+)`", (ROOT / "docs/metrics.md").read_text())
    )


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages ran."""
    folder = tmp_path_factory.mktemp("pipeline")
    offline = ["--total_iters", "12", "--batch_size", "16", "--log_freq", "6", "--eval_freq", "0", *SHORT_EVAL]
    succeed(folder, "collect_demos.py", "--num_demos", "4")
    succeed(folder, "train_shortcut_flow.py", "--validation_share", "0.25", *offline, *SMALL_NET)
    succeed(folder, "train_aw_shortcut_flow.py", "--pretrained_path", "runs/shortcut_flow-PickCube-v1-seed0", *offline)
    succeed(
        folder,
        *["train_online_finetune.py", "--pretrained_path", "runs/aw_shortcut_flow-PickCube-v1-seed0/best_model.pt"],
        *["--num_envs", "4", "--rollout_steps", "3", "--total_timesteps", "96", "--minibatch_size", "6"],
        *["--critic_warmup_steps", "40", "--num_inference_steps", "2", *SHORT_EVAL],
    )
    return folder


def test_all_stages_pass_on_real_maniskill_and_leave_their_files(passed: Path):
    for name in ("shortcut_flow", "aw_shortcut_flow", "reinflow"):
        folder = passed / "runs" / f"{name}-PickCube-v1-seed0"
        assert json.loads((folder / "status.json").read_text())["state"] == "done"
        assert (folder / "best_model.safetensors").is_file()
        assert states(folder)


def test_stage_3_evaluates_the_pretrained_policy_first_and_trains_the_critic_alone_in_warm_up(passed: Path):
    lines = metrics(passed / "runs" / "reinflow-PickCube-v1-seed0")
    assert lines[0]["step"] == 0
    assert "eval/success_once" in lines[0]
    updates = [line for line in lines if "losses/value_loss" in line]
    # 4 envs x 3 decisions x 4 steps = 48 env steps an iteration: warm-up of 40 is the first, 96 in all is two
    assert [line["step"] for line in updates] == [48, 96]
    assert "losses/policy_loss" not in updates[0]
    assert updates[1]["losses/ratio_deviation"] < 1e-4


def test_the_next_stage_reproduces_the_success_that_the_checkpoint_recorded(passed: Path):
    first = metrics(passed / "runs" / "aw_shortcut_flow-PickCube-v1-seed0")[0]
    recorded = [line for line in metrics(passed / "runs" / "shortcut_flow-PickCube-v1-seed0") if "eval/return" in line]
    assert first["step"] == 0
    assert first["eval/return"] == pytest.approx(recorded[-1]["eval/return"], abs=1e-4)


def test_stage_2_hands_over_its_trained_value_beside_the_pretrained_policy(passed: Path):
    # no policy succeeds in 12 steps, so the pretrained one, whose V was untrained at that time, stays the best
    run = passed / "runs" / "aw_shortcut_flow-PickCube-v1-seed0"
    best, last = load_checkpoint(run), latest_training(run)
    assert best.meta["step"] == 0
    assert best.parts.keys() == {"critic", "q", "raw"}
    for part, state in best.parts.items():
        for name, value in state.items():
            assert torch.equal(value, last.parts[part][name])


LONGER = ["--total_iters", "60", "--batch_size", "16", "--log_freq", "5", "--eval_freq", "20", "--save_freq", "20"]
CLONED = ["--pretrained_path", "runs/shortcut_flow-PickCube-v1-seed0"]
STOPPED = {
    "stage 1": (signal.SIGTERM, ["train_shortcut_flow.py", *LONGER, *SHORT_EVAL, *SMALL_NET]),
    "stage 2": (signal.SIGUSR1, ["train_aw_shortcut_flow.py", *CLONED, *LONGER, *SHORT_EVAL]),
    "stage 3": (
        signal.SIGTERM,
        [
            *["train_online_finetune.py", *CLONED, "--num_envs", "4", "--rollout_steps", "3", "--minibatch_size", "6"],
            *["--total_timesteps", "240", "--save_freq", "2", *SHORT_EVAL],
        ],
    ),
}


@pytest.mark.parametrize("case", STOPPED)
def test_a_signal_in_the_middle_of_a_maniskill_run_changes_nothing_but_the_time(passed: Path, case: str):
    number, words = STOPPED[case]
    words = [*words, "--num_workers", "1"]
    succeed(passed, *words, "--exp_name", f"{case} whole")
    name = f"{case} stopped"
    # 3 checks of the first evaluation, then one an iteration, or in Stage 3 3 decisions and 4 x 2 minibatches of one
    strike = Strike(number, str(passed / f"{case}.struck"), checks=30, calls=100)
    stopped = run(passed, *words, "--exp_name", name, strike=strike)
    assert stopped.returncode == EXIT_CODES[number], stopped.stderr
    assert any("losses/value_loss" in line or "losses/total" in line for line in metrics(passed / "runs" / name))
    succeed(passed, words[0], "--resume", f"runs/{name}")
    whole, resumed = (split(latest_training(passed / "runs" / run).training)[1] for run in (f"{case} whole", name))
    assert [place for place in whole if not torch.equal(whole[place], resumed[place])] == []


def test_evaluate_writes_a_row_per_number_of_steps(passed: Path):
    checkpoint = ["--checkpoint", "runs/reinflow-PickCube-v1-seed0", "--num_inference_steps", "1", "2", "4"]
    succeed(passed, "evaluate.py", *checkpoint, *SHORT_EVAL, "--output_dir", "evaluation")
    report = json.loads((passed / "evaluation" / "evaluation.json").read_text())
    assert [row["num_inference_steps"] for row in report["results"]] == [1, 2, 4]
    # 12 env steps in chunks of 4 are three policy calls
    assert all(row["policy_calls_per_episode"] == 3 for row in report["results"])
    assert (passed / "evaluation" / "evaluation.png").stat().st_size > 1000


def test_resume_goes_on_where_the_run_stopped(passed: Path):
    folder = passed / "runs" / "reinflow-PickCube-v1-seed0"
    succeed(passed, "train_online_finetune.py", "--resume", str(folder), "--total_timesteps", "144")
    updates = [line["step"] for line in metrics(folder) if "losses/value_loss" in line]
    assert updates == [48, 96, 144]


CLONE = "train_shortcut_flow.py"
TUNE = "train_online_finetune.py --pretrained_path"
WRONG = {
    "no demos": (f"{CLONE} --demo_path nowhere.h5", "collect_demos.py"),
    "unknown task": (f"{CLONE} --env_id PickCub-v1", "PickCub-v1"),
    "other control mode": (f"{CLONE} --control_mode pd_joint_delta_pos --demo_path DEMOS", "control_mode"),
    "short chunk": (f"{CLONE} --exp_name x --pred_horizon 4 --demo_path DEMOS", "pred_horizon"),
    "run exists": (f"{CLONE} --demo_path DEMOS", "--resume"),
    "forgotten checkpoint": ("train_online_finetune.py", "--pretrained_path"),
    "no checkpoint": (f"{TUNE} nowhere", "nowhere"),
    "no GPU": (f"{TUNE} STAGE1 --exp_name y --sim_backend physx_cuda", "physx_cuda"),
    "task of another checkpoint": (f"{TUNE} STAGE1 --env_id PushCube-v1", "PushCube-v1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_with_one_sentence_and_code_2_and_leaves_nothing(passed: Path, case: str):
    command, named = WRONG[case]
    places = {
        "DEMOS": "demos/PickCube-v1/trajectory.state.pd_ee_delta_pose.h5",
        "STAGE1": "runs/shortcut_flow-PickCube-v1-seed0",
    }
    before = sorted(passed.rglob("*"))
    done = run(passed, *[places.get(word, word) for word in command.split()])
    assert done.returncode == 2, done.stdout + done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("error: ")
    assert named in sentence
    assert sorted(passed.rglob("*")) == before


def test_every_logged_name_is_explained_and_every_explained_name_is_logged(passed: Path):
    lines = [line for folder in (passed / "runs").iterdir() for line in metrics(folder)]
    logged = {name for line in lines for name in line} - {"step", "time"}
    assert logged == documented()
