"""The numbers of a sweep's report, by hand."""

from __future__ import annotations

import json
import math

import pytest

from reinflow.sweep.records import Record, View
from reinflow.sweep.results import Curve, Summary, common_goal, half_interval, read_curve, summarise

CURVE = Curve([0, 100, 200, 300, 400, 500], [0.4, 0.6, 0.5, 0.8, 0.9, 0.7])


def flat(final: float) -> Curve:
    return Curve([0, 100], [0.5, final])


def test_a_curve_by_hand():
    assert (CURVE.pretrained, CURVE.best) == (0.4, 0.9)
    # the last fifth begins at 400: .9 and .7, mean .8, deviation .1; worst falls .6 -> .5 and .9 -> .7
    assert CURVE.final == pytest.approx(0.8)
    assert CURVE.stability == pytest.approx(0.1)
    assert CURVE.drawdown == pytest.approx(0.2)
    assert (CURVE.steps_to(0.8), CURVE.steps_to(0.95)) == (300, None)


def test_all_are_compared_at_one_success():
    # from .5, the best at .9: 80 % of the way is .82
    summaries = [Summary("baseline", "default", [flat(0.7)]), Summary("lr", "high", [flat(0.88), flat(0.92)])]
    assert common_goal(summaries) == pytest.approx(0.82)
    assert summaries[0].steps_to(0.82) == []
    assert summaries[1].steps_to(0.9) == [100]


def test_the_interval_is_students():
    # values 1, 2, 3: mean 2, stdev 1, error 1/sqrt(3), t(2) = 4.303
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert half_interval([1.0]) is None


def test_a_difference_counts_when_it_exceeds_its_interval():
    base = Summary("baseline", "default", [flat(v) for v in (0.80, 0.81, 0.82)])
    near = Summary("lr", "low", [flat(v) for v in (0.81, 0.82, 0.83)])
    far = Summary("lr", "high", [flat(v) for v in (0.60, 0.61, 0.62)])
    # errors .00577 each: .00816 together, t(4) = 2.776, so .0227 is the least difference that counts
    assert near.differs_from(base) is False
    assert far.differs_from(base) is True
    assert far.gain == pytest.approx(0.11)
    assert Summary("lr", "low", [flat(0.9)]).differs_from(base) is None


def test_runs_are_read_from_their_files_and_unfinished_ones_are_left_out(tmp_path):
    views = []
    for name, state, finals in (("low", "done", [0.7]), ("default", "done", [0.8]), ("high", "failed", [0.9])):
        run = tmp_path / name
        run.mkdir()
        lines = [{"step": 0, "time": 10.0, "eval/success_once": 0.5, "time/eval": 2.0}]
        lines += [{"step": 50, "charts/SPS": 90.0, "losses/epochs": 4.0, "time/update": 6.0, "time/rollout": 50.0}]
        lines += [{"step": 100, "charts/SPS": 110.0, "time/update": 1.0}]  # critic warm-up has no epochs of PPO
        lines += [{"step": 100, "time": 9e9, "eval/success_once": final, "time/eval": 1.0} for final in finals]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
        category = "baseline" if name == "default" else "lr"
        views.append(View(Record(name, category, name, 0, str(run), state), state, {}))
    # 2 + 6 + 50 + 1 + 1 seconds, although the last line was written years later; 6 s for 4 epochs
    assert read_curve(tmp_path / "low") == Curve([0, 100], [0.5, 0.7], 60.0, speed=100.0, epoch_seconds=1.5)
    assert read_curve(tmp_path) is None
    summaries = summarise(views)
    assert [summary.key for summary in summaries] == ["baseline:default", "lr:low"]
    assert summaries[1].mean("seconds") == 60.0
    assert summaries[1].mean_of("epoch_seconds") == 1.5


def test_a_task_that_is_ranked_by_its_return_is_compared_by_it(tmp_path):
    lines = [{"step": step, "eval/success_once": 0.0, "eval/return": value} for step, value in ((0, -9.0), (50, -4.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "status.json").write_text(json.dumps({"headline": "return"}))
    curve = read_curve(tmp_path)
    assert (curve.scores, curve.headline, curve.best) == ([-9.0, -4.0], "return", -4.0)
    # from -4 it falls to -7, by 3
    assert Curve([0, 1, 2], [-9.0, -4.0, -7.0]).drawdown == 3.0
