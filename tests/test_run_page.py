"""The page of one run and of a quick start, from made-up files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reinflow.report import Config, main
from reinflow.run_page import History, wilson
from tests.sweep.test_report import Page
from tests.sweep.test_report_in_browser import BROWSER, dumped


def write_run(folder: Path, film: bytes = b"") -> Path:
    """Stage 3 with evaluations at 0, 100 and 200 env steps, of 100 episodes."""
    folder.mkdir(parents=True)
    lines = [{"step": 0, "time/eval": 30.0, "eval/success_once": 0.5}]
    for step, success in ((100, 0.8), (200, 1.0)):
        noise = {"losses/noise_std_p05": 0.05, "losses/noise_std_p50": 0.1, "losses/noise_std_p95": 0.2}
        lines.append({"step": step, "losses/approx_kl": 0.4, **noise, "time/rollout": 60.0, "time/update": 30.0})
        lines.append({"step": step, "time/eval": 30.0, "eval/success_once": success})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"config": {}, "flags": {"num_eval_episodes": 100}, "argv": ["train_online_finetune.py", "--lr", "1e-4"]}
    about = {"versions": {"torch": "2"}, "git_commit": "abc", "started": "now"}
    (folder / "config.json").write_text(json.dumps(config | about))
    alarms = ["the <noise> is at its bound"]
    (folder / "status.json").write_text(json.dumps({"state": "done", "unit": "env_steps", "alarms": alarms}))
    if film:
        (folder / "videos").mkdir()
        for name in ("000000", "000200"):
            (folder / "videos" / f"{name}.mp4").write_bytes(film)
    return folder


def write_quick_start(folder: Path, film: bytes = b"") -> Path:
    write_run(folder / "stage3")
    row = {"success_at_end": 0.7, "return": 30.0, "episode_len": 50.0, "episodes": 200}
    shares = {"Stage 1  behaviour cloning": 0.8, "Stage 2  advantage weighted": 0.81, "Stage 3  ReinFlow (PPO)": 0.95}
    summary = {
        "env_id": "PickCube-v1",
        "num_demos": 20,
        "seed": 0,
        "minutes": 7.25,
        "results": {name: {**row, "success_once": share} for name, share in shares.items()},
        "commands": ["python collect_demos.py --env_id PickCube-v1", "python evaluate.py --checkpoint 'a <b>'"],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if film:
        (folder / "comparison.mp4").write_bytes(film)
    return folder


def test_wilsons_interval_by_hand():
    # n = 4, p = 1: z^2/n = 3.8415/4 = .96036; centre (1 + .48018) / 1.96036, half .48018 / 1.96036
    low, high = wilson(1.0, 4)
    assert low == pytest.approx(1 / 1.96036, abs=1e-5)
    assert high == pytest.approx(1.0)
    assert wilson(0.0, 4) == pytest.approx((0.0, 1 - 1 / 1.96036), abs=1e-5)
    # n = 100, p = .5: centre .5, half sqrt(.25 * .038415 + .038415^2 / 4) / 1.038415
    assert wilson(0.5, 100) == pytest.approx((0.5 - 0.09617, 0.5 + 0.09617), abs=1e-5)


def test_minutes_are_those_that_were_spent_up_to_each_evaluation(tmp_path):
    history = History.read(write_run(tmp_path / "run"))
    # 30 s of evaluation, then 90 s of training and 30 s of evaluation, twice
    assert history.elapsed == [0.5, 2.5, 4.5]
    assert (history.steps, history.scores, history.minutes) == ([0, 100, 200], [0.5, 0.8, 1.0], 4.5)


def test_a_runs_page_is_one_file_with_its_curves_films_alarms_and_commands(tmp_path):
    main(Config(str(write_run(tmp_path / "run", film=b"film"))))
    text = (tmp_path / "run/report.html").read_text()
    page = Page(text)
    assert (page.tags["svg"], page.tags["video"]) == (2, 2)
    assert all(link.startswith("data:") for link in page.links)
    assert "done, success_once 50.0% at the first evaluation, 100.0% at the last, 100.0% at best, 200 env steps" in text
    assert "<li>the &lt;noise&gt; is at its bound</li>" in text
    assert f"python train_online_finetune.py --lr 1e-4\npython evaluate.py --checkpoint {tmp_path / 'run'}" in text


def test_a_run_that_logged_nothing_yet_has_a_page(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    (run / "status.json").unlink()
    main(Config(str(run)))
    assert "no status, 0.0 minutes" in (run / "report.html").read_text()


def test_a_quick_starts_page_shows_its_stages_and_commands(tmp_path):
    main(Config(str(write_quick_start(tmp_path / "quick", film=b"film"))))
    text = (tmp_path / "quick/report.html").read_text()
    page = Page(text)
    assert (page.tags["tr"], page.tags["svg"], page.tags["video"]) == (1 + 3, 2, 1)
    # of .95 and 200 episodes: 190 of 200
    assert "91.0% to 97.3%" in text
    assert "python evaluate.py --checkpoint &#x27;a &lt;b&gt;&#x27;" in text
    assert "20 demonstrations, seed 0, 7.2 minutes" in text


LOOK = """
<script>
const boxes = [...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect());
const found = {charts: boxes.map(box => Math.min(box.width, box.height)),
               overflow: document.documentElement.scrollWidth > window.innerWidth,
               rows: document.querySelectorAll('tbody tr').length};
const pre = document.createElement('pre'); pre.id = 'found'; pre.textContent = JSON.stringify(found);
document.body.append(pre);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
def test_the_quick_starts_page_renders_in_a_browser_and_logs_no_error(tmp_path):
    folder = write_quick_start(tmp_path / "quick")
    main(Config(str(folder)))
    found, errors = dumped(folder / "report.html", LOOK, tmp_path)
    assert len(found["charts"]) == 2
    assert min(found["charts"]) > 100
    assert found["rows"] == 3
    assert not found["overflow"]
    assert errors == []
