"""The report of a sweep, from made-up runs."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reinflow.errors import UserError
from reinflow.report import Config, main
from reinflow.sweep.records import Record


class Page(HTMLParser):
    """Counts tags and notes what would need a network."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: dict[str, int] = {}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.links += [value for name, value in attrs if name in ("src", "href") and value and value[0] != "#"]


def write_job(folder: Path, category: str, variant: str, seed: int, finals: list[float], state: str = "done") -> None:
    name = f"{category}-{variant}-seed{seed}"
    run = folder / name
    run.mkdir(parents=True)
    points = [(0, 0.5), *((100 * (index + 1), final) for index, final in enumerate(finals))]
    lines = [{"step": step, "time/eval": 6.0 * step, "eval/success_once": success} for step, success in points]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / f"{name}.log").write_text("starting\n<b>out of memory</b>\n")
    Record(name, category, variant, seed, str(run), state, attempts=1, error="out of memory").save(folder)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed in range(3):
        write_job(tmp_path, "baseline", "default", seed, [0.7, 0.80 + 0.01 * seed])
        write_job(tmp_path, "lr", "high", seed, [0.8, 0.90 + 0.01 * seed])
        write_job(tmp_path, "lr", "low", seed, [0.6, 0.81 + 0.01 * seed])
    write_job(tmp_path, "noise", "fast", 0, [0.1], state="failed")
    return tmp_path


def test_the_page_is_one_file_with_a_table_and_a_chart_per_category(sweep):
    main(Config(str(sweep)))
    text = (sweep / "report.html").read_text()
    page = Page(text)
    assert page.tags["svg"] == 1
    assert page.tags["table"] == 1 + 1  # all configurations, and the one category that is not the baseline
    assert page.tags["tr"] == 2 * (1 + 3)
    assert all(link.startswith("data:") for link in page.links)
    assert "lr:high is better than the baseline; 1 of 2 configurations" in text
    assert "&lt;b&gt;out of memory&lt;/b&gt;" in text


def test_the_tables_numbers_by_hand(sweep):
    main(Config(str(sweep)))
    lines = (sweep / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| lr:high"))
    # last fifth of 200 steps: the evaluation at 200; mean of .90, .91, .92
    # the goal is .5 + .8 (.91 - .5) = .828, reached at 200; evaluations of 6 * (0 + 100 + 200) s are 30 minutes
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["lr:high", "3", "91.0"]
    assert cells[4:6] == ["+10.0*", "+41.0"]
    assert cells[7] == "200"
    assert cells[10] == "30.0"
    low = next(line for line in lines if line.startswith("| lr:low")).strip("|").split("|")
    assert low[7].strip() == "200 (1/3)"  # .81, .82, .83
    assert any(line.startswith("* noise-fast-seed0: failed: out of memory") for line in lines)


def test_every_evaluation_is_a_row_of_the_csv(sweep):
    main(Config(str(sweep)))
    with (sweep / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 3 + 2
    assert {row["state"] for row in rows} == {"done", "failed"}


def test_one_seed_is_called_noise(tmp_path):
    write_job(tmp_path, "baseline", "default", 0, [0.7])
    write_job(tmp_path, "lr", "low", 0, [0.9])
    main(Config(str(tmp_path)))
    assert "no difference can be told from noise" in (tmp_path / "report.md").read_text()


def test_another_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="not the folder of a sweep"):
        main(Config(str(tmp_path)))


def test_a_sweep_over_a_task_of_returns_shows_them_as_they_are(tmp_path):
    for variant, final in (("default", -40.0), ("high", -35.0)):
        category = "baseline" if variant == "default" else "lr"
        write_job(tmp_path, category, variant, 0, [final])
        run = tmp_path / f"{category}-{variant}-seed0"
        lines = [{"step": step, "eval/success_once": 0.0, "eval/return": r} for step, r in ((0, -50.0), (100, final))]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "status.json").write_text(json.dumps({"headline": "return"}))
    main(Config(str(tmp_path)))
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert next(line for line in lines if line.startswith("| configuration")).split(" | ")[2] == "return"
    row = [cell.strip() for cell in next(line for line in lines if line.startswith("| lr:high")).strip("|").split("|")]
    # the last evaluation, 5 above the baseline and 15 above the pretrained policy
    assert (row[2], row[4], row[5]) == ("-35.0", "+5.0", "+15.0")
    # -50 + .8 * 15 = -38
    assert any("env steps until a return of -38, 80 %" in line for line in lines)
