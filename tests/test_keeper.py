"""What the keeper writes to `best_model.safetensors`, decided by scripted evaluations."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reinflow.flags import with_flags
from reinflow.policies import build_policy
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint
from reinflow.training import keeper as module
from reinflow.training.config import EvalConfig
from reinflow.training.evaluation import standard_error
from reinflow.training.ranking import Score, restored
from tests.test_checkpoint import ENV, SPEC


def keeper_of(tmp_path, monkeypatch, scores: list[tuple[float, float]], **options: Any) -> module.Keeper:
    """A keeper whose evaluations have those scores; `parts` makes the critics beside the policy of each."""
    script, parts = iter(scores), options.pop("parts", lambda place: {})
    task = options.pop("task", ENV)
    evaluated = -1

    def evaluation(*_: Any, **__: Any) -> SimpleNamespace:
        nonlocal evaluated
        evaluated += 1
        return SimpleNamespace(metrics=lambda: metrics_of(*next(script)))

    monkeypatch.setattr(module, "evaluate", evaluation)
    policy = build_policy(SPEC)
    trainer = SimpleNamespace(
        run=SimpleNamespace(dir=tmp_path, status=lambda **_: None),
        generator=torch.Generator(),
        snapshot=lambda: Checkpoint(SPEC, ENV, policy.state_dict(), parts(evaluated)),
    )
    return module.Keeper(trainer, SimpleNamespace(spec=task), EvalConfig(num_eval_episodes=100), **options)


def metrics_of(once: float, at_end: float, return_: float = 0.0, error: float = 0.0) -> dict[str, float]:
    successes = {"eval/success_once": once, "eval/success_at_end": at_end}
    return successes | {"eval/return": return_, "eval/return_error": error}


def kept(tmp_path, monkeypatch, scores: list[tuple[float, float]], prefer_newer: bool) -> tuple[int, list[float]]:
    """The place in `scores` of what is kept as best in the end, and the highest success after each evaluation."""
    keeper = keeper_of(tmp_path, monkeypatch, scores, prefer_newer=prefer_newer)
    highest = [keeper.evaluate(None, place)["eval/best_success_once"] for place in range(len(scores))]
    return load_checkpoint(tmp_path / "best_model.safetensors").meta["step"], highest


def test_standard_error_by_hand():
    assert standard_error(0.5, 96) == pytest.approx(0.05)  # (48 + 2) / 100, sqrt(.25 / 100)
    assert standard_error(1.0, 96) == pytest.approx(math.sqrt(0.98 * 0.02 / 100))  # not 0: (96 + 2) / 100


def test_the_highest_evaluation_is_kept_and_the_earlier_of_two_alike(tmp_path, monkeypatch):
    scores = [(0.8, 0.7), (0.95, 0.8), (0.95, 0.9), (0.95, 0.9), (0.94, 0.94)]
    assert kept(tmp_path, monkeypatch, scores, prefer_newer=False) == (2, [0.8, 0.95, 0.95, 0.95, 0.95])


@pytest.mark.parametrize(
    ("last", "place"),
    [
        (0.93, 2),  # (95 + 2) / 104 = .933 and its error is .0245: .9255 is as low as a newer one may be
        (0.92, 1),
    ],
)
def test_a_newer_policy_is_kept_unless_its_success_is_a_standard_error_below_the_highest(
    tmp_path, monkeypatch, last, place
):
    scores = [(0.8, 0.7), (0.95, 0.9), (last, 0.99)]
    assert kept(tmp_path, monkeypatch, scores, prefer_newer=True) == (place, [0.8, 0.95, 0.95])


def test_small_steps_down_do_not_add_up(tmp_path, monkeypatch):
    scores = [(0.95, 0.9), (0.93, 0.9), (0.91, 0.9)]
    assert kept(tmp_path, monkeypatch, scores, prefer_newer=True)[0] == 1


@pytest.mark.parametrize(
    ("scores", "step", "critic"),
    [
        ([(0.9, 0.9), (0.8, 0.8), (0.7, 0.7)], 0, 9.0),  # nothing had learnt beside the pretrained policy
        ([(0.5, 0.5), (0.8, 0.8), (0.7, 0.7)], 1, 1.0),
        ([(0.5, 0.5), (0.8, 0.8), (0.9, 0.9)], 2, 2.0),
    ],
)
def test_the_kept_policy_has_the_critic_of_its_own_iteration(tmp_path, monkeypatch, scores, step, critic):
    """The critic of evaluation i is i; 9 is the last one, which is handed over in the end."""
    keeper = keeper_of(tmp_path, monkeypatch, scores, parts=lambda place: {"critic": {"v": torch.tensor(float(place))}})
    for place in range(len(scores)):
        keeper.evaluate(None, place)
    keeper.hand_over({"critic": {"v": torch.tensor(9.0)}})
    best = load_checkpoint(tmp_path / "best_model.safetensors")
    assert (best.meta["step"], best.parts["critic"]["v"].item()) == (step, critic)


def test_policies_that_are_to_stay_are_kept_beside_the_best_one(tmp_path, monkeypatch):
    keeper = keeper_of(tmp_path, monkeypatch, [(0.5, 0.5), (0.8, 0.8), (0.7, 0.7)])
    for place, keep in enumerate((True, False, True)):
        keeper.evaluate(None, 10 * place, keep)
    kept_steps = [load_checkpoint(path).meta["step"] for path in sorted((tmp_path / "kept").iterdir())]
    assert kept_steps == [0, 20]
    assert load_checkpoint(tmp_path).meta["step"] == 10


def test_a_state_that_is_older_than_what_describes_its_policy_and_task_now_goes_on(tmp_path, monkeypatch):
    older = Checkpoint(SPEC, ENV, {}, training={"count": 3})
    now = Checkpoint(with_flags(SPEC, {"step_size_mode": "uniform"}), replace(ENV, still=(0.0, None)), {})
    monkeypatch.setattr(module, "latest_training", lambda *_, **__: older)
    run = SimpleNamespace(dir=tmp_path, say=print)
    trainer = SimpleNamespace(run=run, generator=torch.Generator(), snapshot=lambda: now)
    assert module.Keeper(trainer, None, EvalConfig())._load() == {"count": 3}


RANKED = replace(ENV, headline="return")


@pytest.mark.parametrize(
    ("returns", "place"),
    [
        ([-40.0, -33.0, -35.0], 1),
        ([-40.0, -33.0, -34.4], 2),  # the highest has a standard error of 1.5
        ([-40.0, -33.0, -34.6], 1),
    ],
)
def test_a_task_that_is_ranked_by_its_return_keeps_the_highest_one(tmp_path, monkeypatch, returns, place):
    scores = [(0.0, 0.0, value, 1.5) for value in returns]
    keeper = keeper_of(tmp_path, monkeypatch, scores, prefer_newer=True, task=RANKED)
    highest = [keeper.evaluate(None, step)["eval/best_return"] for step in range(3)]
    assert load_checkpoint(tmp_path / "best_model.safetensors").meta["step"] == place
    assert highest == [-40.0, -33.0, -33.0]


def test_the_status_of_a_run_says_what_it_is_ranked_by(tmp_path, monkeypatch):
    said: dict[str, Any] = {}
    keeper = keeper_of(tmp_path, monkeypatch, [(0.25, 0.0, -3.0, 1.0)], task=RANKED)
    keeper.run.status = lambda **fields: said.update(fields)
    keeper.evaluate(None, 0)
    assert said == {"headline": "return", "success": 0.25, "return": -3.0, "best_return": -3.0}


def test_scores_come_back_also_from_states_that_are_older_than_returns():
    assert restored([-33.0, 0.0, 1.5], 96) == Score(-33.0, 0.0, 1.5)
    assert restored([-33.0, 0.0, 1.5], 96).error == 1.5
    # two numbers, and one, are successes: sqrt(.25 / 100) of .5 in 96 episodes
    assert restored([0.5, 0.25], 96) == Score(0.5, 0.25, 0.05)
    assert restored(0.5, 96).error == restored([0.5, 0.25], 96).error == pytest.approx(0.05)
    assert restored(None, 96) is restored(math.nan, 96) is None
    score = Score(1.0, 2.0, 3.0)
    assert restored(score.saved(), 96).error == 3.0
