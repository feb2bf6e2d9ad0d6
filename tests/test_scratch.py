"""`--scratch`: PPO from an untrained policy, in any suite; and all stages on a MuJoCo task that starts from nothing."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import signal
from pathlib import Path

import pytest
import torch

import evaluate
import train_online_finetune
from reinflow.algos.scratch import FromScratch
from reinflow.cli import parse
from reinflow.data.config import demo_file_name
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.suite import SUITES
from reinflow.errors import UserError
from reinflow.presets import ONLINE_PRESETS
from reinflow.recording.writer import TrajectoryWriter
from reinflow.runtime import interrupts
from reinflow.storage.checkpoint import load_checkpoint, load_policy
from reinflow.storage.resumable import latest_training
from tests.small import EVALUATION, NET, OFFLINE, ONLINE, SCRIPTS
from tests.test_resume import assert_equal, stop_at
from tests.toys import suite

SHORT = ["--preset", "scratch", "--num_envs", "8", "--rollout_steps", "10", "--minibatch_size", "40",
         "--critic_warmup_steps", "1", *EVALUATION]  # fmt: skip
LIMIT = 12
"""env steps of an episode of Pusher"""


def run(stage: int, folder: Path, name: str, *words: str) -> None:
    """A stage's script, without its output."""
    script = importlib.import_module(SCRIPTS[stage])
    common = ["--exp_name", name, "--runs_dir", str(folder / "runs"), "--no-cuda", "--num_workers", "0"]
    presets = ONLINE_PRESETS if stage == 3 else {}
    config = parse(script.Config, words if "--resume" in words else [*common, *words], presets=presets)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        script.main(config)


def metrics_of(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def test_an_untrained_policy_learns_to_stay_on_the_ridge(tmp_path: Path):
    # a step pays 2 (1 - distance), so 20 steps on the ridge pay 40; left alone, it slides off the ridge by 5 % a step
    with SUITES.having("ridge", suite.ENTRY):
        words = ["--env_id", "Ridge-v0", "--rollout_steps", "20", "--minibatch_size", "80", "--lr", "1e-3"]
        run(3, tmp_path, "ridge", *SHORT, *words, "--total_timesteps", "1600", "--eval_freq", "0")
        returns = [row["eval/return"] for row in metrics_of(tmp_path, "ridge") if "eval/return" in row]
    assert returns[-1] > 36 > 30 > returns[0]
    deviations = [row["losses/ratio_deviation"] for row in metrics_of(tmp_path, "ridge")[2:] if "charts/SPS" in row]
    assert len(deviations) > 5 and max(deviations) < 1e-4  # a rollout is scored by what it was sampled with


def test_observations_are_normalised_by_all_states_that_its_rollouts_met(tmp_path: Path, monkeypatch):
    met: list[torch.Tensor] = []
    store = FromScratch.act

    def noted(self, obs, generator):
        met.append(obs["state"][:, -1].double())
        return store(self, obs, generator)

    monkeypatch.setattr(FromScratch, "act", noted)
    run(3, tmp_path, "toy", *SHORT, "--env_id", "Toy-v0", "--total_timesteps", "240", "--eval_freq", "0")
    states = torch.cat(met)
    assert len(states) == 240
    policy, _ = load_policy(tmp_path / "runs" / "toy", "cpu")
    training = latest_training(tmp_path / "runs" / "toy").training
    moments = training["learner"]["moments"]
    torch.testing.assert_close(moments["mean"], states.mean(0))
    shift = training["learner"]["agent"]["policy.encoder.state_normalizer.shift"]
    torch.testing.assert_close(shift, states.mean(0).float())
    assert policy.spec.family == "gaussian"
    # it acts in the whole range of the task's actions, though nobody demonstrated any
    assert policy.action_normalizer.denormalize(torch.ones(2)).tolist() == [1.0, 1.0]


def test_another_family_starts_from_nothing_as_well(tmp_path: Path):
    words = ["--family", "ddpm", "--num_inference_steps", "3", "--act_horizon", "2", "--pred_horizon", "2"]
    run(3, tmp_path, "ddpm", *SHORT, *words, "--env_id", "Toy-v0", "--total_timesteps", "160", "--eval_freq", "0")
    spec = load_checkpoint(tmp_path / "runs" / "ddpm").policy_spec
    assert (spec.family, spec.num_inference_steps, spec.act_horizon) == ("ddpm", 3, 2)


def test_a_stopped_run_from_scratch_goes_on_to_the_bit(tmp_path: Path, monkeypatch):
    pytest.importorskip("mujoco")
    words = [*SHORT, "--env_id", "Hopper-v5", "--max_episode_steps", "30", "--total_timesteps", "320"]
    run(3, tmp_path, "whole", *words)
    monkeypatch.setattr(interrupts, "check", stop_at(40, signal.SIGTERM))
    with pytest.raises(interrupts.Interrupted):
        run(3, tmp_path, "stopped", *words)
    monkeypatch.undo()
    run(3, tmp_path, "stopped", "--resume", str(tmp_path / "runs" / "stopped"))
    assert_equal(tmp_path, "whole", "stopped")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--pretrained_path is missing: .* or start from an untrained policy with --preset scratch"),
        ("--scratch --pretrained_path runs/x", "--scratch starts from an untrained policy and --pretrained_path"),
        (
            "--pretrained_path runs/x --net unet --act_horizon 4",
            "--net unet .*--act_horizon 4.*: the policy of",
        ),
    ],
)
def test_a_start_is_a_checkpoint_or_nothing(words: str, said: str):
    with pytest.raises(UserError, match=said):
        train_online_finetune.main(parse(train_online_finetune.Config, words.split()))


def record(folder: Path, name: str, episodes: int) -> Path:
    """Episodes of a policy without noise, in ManiSkill's format."""
    policy, checkpoint = load_policy(folder / "runs" / name, "cpu")
    task = checkpoint.env_spec
    kwargs = {"obs_mode": "state", "control_mode": task.control_mode, "reward_mode": task.reward_mode}
    info = {"env_id": task.env_id, "env_kwargs": kwargs, "max_episode_steps": LIMIT}
    path = folder / demo_file_name("state", task.control_mode)
    env = make_env(EnvConfig(task.env_id, max_episode_steps=LIMIT, num_workers=0), 1, 1, 1, 1.0)
    with TrajectoryWriter(path, info, {"source_type": "rl", "source_desc": name}) as writer:
        for seed in range(episodes):
            obs, taken, steps = env.reset(seed=[seed]), [], []
            frames = [obs["state"][0, -1]]
            while not steps or not steps[-1].ended:
                taken.append(policy.act(obs).detach())
                steps.append(env.step_chunk(taken[-1]))
                frames.append(steps[-1].final_obs["state"][0, -1])
                obs = steps[-1].obs
            columns = {"rewards": "reward", "terminated": "terminated", "truncated": "truncated"}
            data = {name: torch.cat([getattr(step, own) for step in steps]) for name, own in columns.items()}
            data |= {"obs": torch.stack(frames), "actions": torch.cat(taken)[:, 0]}
            writer.add(data | {"success": torch.zeros(len(steps), dtype=torch.bool)}, seed, task.control_mode)
    return path


def test_pusher_from_nothing_through_all_stages_to_a_return(tmp_path: Path):
    pytest.importorskip("mujoco")
    task = ["--env_id", "Pusher-v5", "--max_episode_steps", str(LIMIT)]
    run(3, tmp_path, "teacher", *SHORT, *task, "--total_timesteps", "160")
    demos = ["--demo_path", str(record(tmp_path, "teacher", episodes=4)), *OFFLINE, *EVALUATION]
    run(1, tmp_path, "clone", *task, *demos, *NET)
    run(2, tmp_path, "weighted", *demos, "--pretrained_path", str(tmp_path / "runs" / "clone"), "--num_qs", "2")
    run(3, tmp_path, "tuned", *ONLINE, *EVALUATION, "--pretrained_path", str(tmp_path / "runs" / "weighted"))
    words = ["--checkpoint", str(tmp_path / "runs" / "tuned"), *EVALUATION, "--num_workers", "0", "--no-cuda"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate.main(parse(evaluate.Config, words))
    (row,) = json.loads((tmp_path / "runs" / "tuned" / "evaluation.json").read_text())["results"]
    assert row["episode_len"] == LIMIT
    assert row["return"] < 0 < row["return_error"]
    returns = [episode["return"] for episode in row["per_episode"]]
    assert row["return"] == pytest.approx(sum(returns) / len(returns))
    checkpoint = load_checkpoint(tmp_path / "runs" / "tuned")
    assert (checkpoint.env_spec.headline, checkpoint.env_spec.reward_mode) == ("return", "native")
