"""What the README shows works as it is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import run_program

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The README's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


PROGRAMS = blocks("python")


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_runs(number: int, tmp_path: Path) -> None:
    """Each block of Python is a whole program, which ends by itself without an error."""
    run_program(PROGRAMS[number], tmp_path)


def test_the_quickstart_is_the_example() -> None:
    """What the README shows first is the file that it names, to the letter."""
    assert (ROOT / "examples" / "quickstart.py").read_text("utf-8") == PROGRAMS[0]


def test_two_commands_set_up_and_test() -> None:
    """There are two lines to type, which .ci/run takes from here; programs outside rest on the first."""
    assert [
        "python -m venv .venv && .venv/bin/pip install -e . && .venv/bin/replikv demo",
        ".venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
    ] == [line for block in blocks("sh") for line in block.splitlines()]


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")),
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link of a page is to a file that exists, and to a heading that is in it."""
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", (ROOT / page).read_text("utf-8"))
    targets = [((ROOT / page).parent / link if link else ROOT / page, anchor) for link, anchor in links]
    assert [] == [str(file) for file, _ in targets if not file.exists()]
    assert [] == [f"{file}#{anchor}" for file, anchor in targets if anchor and anchor not in anchors(file)]
