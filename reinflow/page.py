"""Pieces of a page that is one file and needs no network: charts are SVG inside it, videos are embedded.

A few lines of script sort its tables.
"""

from __future__ import annotations

import base64
import html
import io
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MAX_VIDEO_BYTES = 3_000_000
"""a larger video is named instead of embedded"""
STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
th { cursor: pointer; background: #f4f4f4 } .better { color: #06732d } .worse { color: #b00020 }
svg, video { max-width: 100%; height: auto } pre { background: #f4f4f4; padding: .5rem; overflow-x: auto }
code { background: #f4f4f4; padding: 0 .2rem } .note { color: #666 }
"""
SCRIPT = """
for (const th of document.querySelectorAll('th')) th.addEventListener('click', () => {
  const table = th.closest('table'), column = [...th.parentNode.children].indexOf(th);
  const down = th.dataset.down = th.dataset.down === '1' ? '' : '1';
  const key = row => { const text = row.children[column].textContent, n = parseFloat(text.replace(/,/g, ''));
                       return Number.isNaN(n) ? text : n; };
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const x = key(a), y = key(b), numbers = [x, y].filter(value => typeof value === 'number').length;
    const order = numbers === 1 ? (typeof x === 'number' ? 1 : -1) : x < y ? -1 : x > y ? 1 : 0;
    return down ? -order : order; });
  table.tBodies[0].append(...rows);
});
"""


def document(title: str, body: Iterable[str]) -> str:
    """The whole file."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body>{''.join(body)}<script>{SCRIPT}</script></body></html>\n"
    )


def table(titles: Sequence[str], rows: Iterable[Sequence[tuple[str, str]]]) -> str:
    """A sortable table; a cell is its text and the name of its style."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    texts = ("".join(f'<td class="{mark}">{html.escape(text)}</td>' for text, mark in row) for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in texts)}</tbody></table>"


def described(run_dir: Path) -> str:
    """Commit, versions and command of a run, from its config.json; nothing where there is none."""
    path = run_dir / "config.json"
    if not path.exists():
        return ""
    config = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    text = f"commit {config['git_commit']}, started {config['started']}, {versions}"
    return f"<p>{html.escape(text)}<br><code>{html.escape(shlex.join(config['argv']))}</code></p>"


def commands(lines: Iterable[str]) -> str:
    """Commands to copy, one per line."""
    return f"<h2>commands</h2><pre>{html.escape(chr(10).join(lines))}</pre>"


def video(path: Path, title: str) -> str:
    """A film inside the page, or its name where it is too large for that."""
    if path.stat().st_size > MAX_VIDEO_BYTES:
        return f"<p>{html.escape(str(path))} is too large to embed.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p>{html.escape(title)}<br><video controls src="data:video/mp4;base64,{data}"></video></p>'


def panels(count: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its `count` axes side by side (a single one as it is), with a grid; sizes in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=size, layout="constrained")
    for one in axes if count > 1 else [axes]:
        one.grid(alpha=0.3)
    return figure, axes


def svg(figure: Any) -> str:
    """The figure as an element of a page; it is closed."""
    from matplotlib import pyplot

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
