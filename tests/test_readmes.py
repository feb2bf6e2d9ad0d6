"""The two READMEs say the same: commands, links and measured percentages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [re.sub(r"\s*#.*", "", line) for block in blocks for line in block.splitlines()]


def links(text: str) -> set[str]:
    return set(re.findall(r"\]\((?!README)([^)]+)\)", text))


def test_both_readmes_have_the_same_commands_and_links():
    assert commands(CHINESE) == commands(ENGLISH)
    assert links(CHINESE) == links(ENGLISH)
    assert all((ROOT / link).exists() for link in links(ENGLISH) if not link.startswith("https://"))


def test_both_readmes_report_the_same_percentages():
    assert re.findall(r"[\d.]+ %", CHINESE) == re.findall(r"[\d.]+ %", ENGLISH)


def test_both_readmes_have_as_many_sections_and_table_rows():
    for mark in ("## ", "| "):
        count = [sum(line.startswith(mark) for line in text.splitlines()) for text in (ENGLISH, CHINESE)]
        assert count[0] == count[1] > 0


def test_no_line_of_a_page_is_wider_than_120_columns_but_those_of_tables():
    pages = [ENGLISH, *(path.read_text() for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("C*.md")])]
    assert [line for page in pages for line in page.splitlines() if len(line) > 120 and not line.startswith("|")] == []
