"""The script for a GPU machine: a step that fails or hangs ends nothing, and the table tells of all."""

from __future__ import annotations

import json
import sys
import time

import pytest

from benchmarks import gpu
from benchmarks.gpu import STEPS, TOTAL, Step, dried, run_all

ROW = {"case": "mlp", "seconds": {"plain": [0.2, 0.3], "graph": [0.01]}, "relative_difference": 2e-6}


def python(name: str, code: str, seconds: float = 20.0) -> Step:
    return Step(name, ("-c", code), seconds, target="none")


def test_a_failing_and_a_hanging_step_are_rows_like_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "described", lambda: "a card")
    rows, place = json.dumps({"rows": [ROW]}), str(tmp_path / "good.json")
    result = f"import pathlib; pathlib.Path({place!r}).write_text({rows!r})"
    hang = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    steps = [python("bad", "raise ValueError('no | such thing')"), python("slow", hang, 1.0), python("good", result)]
    began = time.monotonic()
    endings = [outcome.ending for outcome in run_all(steps, tmp_path, total=100)]
    assert time.monotonic() - began < 60
    assert endings == ["exit code 1: ValueError: no | such thing", "ended after 1 s", "ok"]
    machine, _, _, _, bad, slow, good = (tmp_path / "table.md").read_text().splitlines()
    assert machine == "a card"
    assert bad.startswith("| bad | exit code 1: ValueError: no / such thing |")
    assert slow.startswith("| slow | ended after 1 s | 1 |")
    assert good.endswith("mlp: plain 250.00 ms, graph 10.00 ms; they differ by 2.0e-06 |")


def test_steps_for_which_no_time_is_left_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "described", lambda: "a card")
    (outcome,) = run_all([python("late", "")], tmp_path, total=gpu.WORTH_STARTING)
    assert outcome.ending == "no time left"


def test_all_limits_together_are_under_nine_minutes():
    assert sum(step.seconds for step in STEPS) <= TOTAL < 9 * 60


def test_a_dry_step_asks_for_no_gpu_and_its_tiny_sizes_win():
    for step in STEPS:
        words = dried(step).words
        assert "--cuda_graphs" not in words
        assert words[len(words) - len(step.dry) :] == step.dry


def test_the_script_ends_with_1_where_a_step_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "described", lambda: "a card")
    monkeypatch.setattr(gpu, "STEPS", (python("bad", "exit(3)"),))
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path)])
    assert gpu.main() == 1
    assert "bad              exit code 3: no output" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"net": "unet", "k": 8, "way": "CUDA graph", "hz": 812.4}, "unet, K = 8, CUDA graph: 812 Hz"),
        (
            {"num_envs": "256", "verdict": "", "freeze_visual_encoder": "True", "torch_peak_mb": "1234.5",
             "device_peak_mb": "", "host_peak_mb": "10"},
            "256 envs, encoder frozen: torch 1,234 MB, device -, host 10 MB",
        ),
        (
            {"num_envs": "64", "verdict": "out of memory", "freeze_visual_encoder": "False"},
            "64 envs, encoder trained: out of memory",
        ),
        ({"workers": 16, "per_worker": 8, "seconds": [0.01, 0.02, 0.03]}, "16 x 8 envs: 6,400 env steps/s"),
        ({"fixed": 1.0}, None),
    ],
)  # fmt: skip
def test_rows_are_told_in_a_line(row, line):
    assert list(gpu.described_row(row)) == ([] if line is None else [line])
