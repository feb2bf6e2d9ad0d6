"""The report in a real browser: headless Chromium loads the file, without a network, and clicks."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reinflow.report import Config, main
from reinflow.sweep.records import Record
from tests.waiting import HANGS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CLICKS = """
<script>
const table = document.querySelector('table'), heads = [...table.querySelectorAll('th')];
const column = index => [...table.tBodies[0].rows].map(row => row.cells[index].textContent);
const click = name => { const index = heads.findIndex(th => th.textContent === name); heads[index].click();
                        return column(index); };
const svg = document.querySelector('svg').getBoundingClientRect();
const found = {falling: click('success'), rising: click('success'), names: click('configuration'),
               missing: click('±95 %'), chart: [svg.width, svg.height],
               overflow: document.documentElement.scrollWidth > window.innerWidth};
const pre = document.createElement('pre'); pre.id = 'found'; pre.textContent = JSON.stringify(found);
document.body.append(pre);
</script>
"""


def dumped(path: Path, code: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What `code`, at the end of a page, leaves as JSON in an element `found`, and the console's lines."""
    (folder / "looked_at.html").write_text(path.read_text().replace("</body>", f"{code}</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1280,2000"]
    command += [(folder / "looked_at.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
    written = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert written, done.stderr
    return json.loads(html.unescape(written.group(1))), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
def test_the_page_renders_sorts_and_logs_no_error(tmp_path):
    for variant, successes in (("default", [0.9, 0.8]), ("high", [1.0, 1.0]), ("low", [0.09])):
        category = "baseline" if variant == "default" else "lr"
        for seed, success in enumerate(successes):
            run = tmp_path / f"{variant}{seed}"
            run.mkdir()
            points = [{"step": 0, "eval/success_once": 0.05}, {"step": 100, "eval/success_once": success}]
            (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
            Record(run.name, category, variant, seed, str(run), "done", attempts=1).save(tmp_path)
    main(Config(str(tmp_path)))
    found, errors = dumped(tmp_path / "report.html", CLICKS, tmp_path)
    assert found["rising"] == ["9.0", "85.0", "100.0"]  # as numbers: as text 100 would come first
    assert found["falling"] == ["100.0", "85.0", "9.0"]
    assert found["names"] == ["lr:low", "lr:high", "baseline:default"]
    assert found["missing"][-1] == "-"
    assert min(found["chart"]) > 100
    assert not found["overflow"]
    assert errors == []
