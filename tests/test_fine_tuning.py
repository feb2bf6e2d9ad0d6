"""What Stage 3 says of itself: alarms at evaluations and at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from reinflow.training.fine_tuning import FEW_ITERATIONS, beside_the_pretrained
from reinflow.training.loops import OnPolicyState
from reinflow.training.ranking import Score, score_of
from tests.small import demo_file, run_stage

MOVED, FROZEN = OnPolicyState(iteration=4, policy_updates=3), OnPolicyState(iteration=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Stage 1."""
    folder = tmp_path_factory.mktemp("online")
    demo_file(folder)
    run_stage(1, folder, "start")
    return folder


def score(success: float, episodes: int) -> Score:
    return score_of({"eval/success_once": success, "eval/success_at_end": success}, "success_once", episodes)


def alarms_of(success: float, state: OnPolicyState, episodes: int = 96) -> list[str]:
    """Of an evaluation after one of .5."""
    said: list[str] = []
    trainer = SimpleNamespace(
        keeper=SimpleNamespace(
            first=score(0.5, episodes),
            headline="success_once",
            score=lambda metrics: score(metrics["eval/success_once"], episodes),
        ),
        run=SimpleNamespace(alarm=said.append),
        loop=SimpleNamespace(policy_updates=state.policy_updates, over=False, warm_up_flag="critic_warmup_steps"),
    )
    beside_the_pretrained(trainer, {"eval/success_once": success, "eval/success_at_end": 0.0})
    return said


def test_two_standard_errors_of_a_difference_by_hand():
    # of .5 in 96 episodes: sqrt(.25 / 100) = .05; of .35: (33.6 + 2) / 100 = .356, sqrt(.356 * .644 / 100) = .0479;
    # 2 * sqrt(.05^2 + .0479^2) = .1385, and .5 - .35 = .15 is more; .37 has .0482, .1389 and .13
    assert score(0.35, 96).is_below(score(0.5, 96))
    assert not score(0.37, 96).is_below(score(0.5, 96))
    assert not score(0.35, 20).is_below(score(0.5, 20))
    assert not score(0.6, 10_000).is_below(score(0.5, 10_000))
    # returns: 2 * sqrt(3^2 + 4^2) = 10
    assert Score(-10.1, 0, 3.0).is_below(Score(0.0, 0, 4.0))
    assert not Score(-9.9, 0, 3.0).is_below(Score(0.0, 0, 4.0))


def test_a_success_that_fell_beyond_the_error_of_its_evaluation_is_an_alarm():
    assert len(alarms_of(0.35, MOVED)) == 1
    assert alarms_of(0.37, MOVED) == []
    assert alarms_of(0.35, MOVED, episodes=20) == []


def test_a_policy_that_has_not_moved_did_not_fall():
    assert alarms_of(0.0, FROZEN) == []


def said_by(folder: Path, name: str, *more: str) -> str:
    run_stage(3, folder, name, *more)
    return " ".join(json.loads((folder / "runs" / name / "status.json").read_text())["alarms"])


def test_a_run_inside_critic_warm_up_says_that_the_policy_never_moved(folder):
    # 4 envs x 5 decisions x 4 steps are 80 env steps, so 320 are four iterations: warm-up covers all of them, or three
    assert "never moved" in said_by(folder, "frozen", "--critic_warmup_steps", "241")
    assert "never moved" not in said_by(folder, "moved", "--critic_warmup_steps", "240")


def test_few_iterations_are_the_same_number_in_the_code_and_in_the_docs():
    docs = Path(__file__).parent.parent / "docs"
    sentences = {
        "scripts.md": f"a run of fewer than {FEW_ITERATIONS} iterations",
        "ablations.md": f"Fewer than {FEW_ITERATIONS} iterations",
        "troubleshooting.md": f"fewer than {FEW_ITERATIONS} values of charts/iteration",
    }
    for page, sentence in sentences.items():
        assert sentence in " ".join((docs / page).read_text().split()), page
