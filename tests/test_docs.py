"""What the pages show is right: whole programs run, and fragments do what they say against the library as it is."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import trio
from programs import run_program
from trio.testing import MockClock

import replikv
from replikv import Cluster, recipes
from replikv.testing.simulator.planted import CATALOGUE

ROOT = Path(__file__).parents[1]

SHOWN_S = 30.0
"""What a page shows as going on for ever ends then, by the mock clock."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of Python on a page."""

    page: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_program(self) -> bool:
        return "trio.run(" in self.code

    def compiled(self) -> CodeType:
        """As the body of a coroutine, so that fragments may await."""
        code: CodeType = compile(self.code, str(self), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return code


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text("utf-8")
    return [
        Block(path.relative_to(ROOT).as_posix(), text[: found.start()].count("\n") + 1, textwrap.dedent(found[2]))
        for found in re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    ]


BLOCKS = [block for path in sorted((ROOT / "docs").rglob("*.md")) for block in blocks_of(path)]


# -- what the application of a fragment would have ---------------------------------------------------------------------


class Bank(replikv.StateMachine):
    """The reader's own machine, as small as it gets: a list of what it was told."""

    def __init__(self) -> None:
        self.told: list[bytes] = []

    def apply(self, position: int, command: bytes) -> bytes:
        self.told.append(command)
        return b""

    def snapshot(self) -> Iterator[bytes]:
        return iter(list(self.told))

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.told = list(chunks)


async def do_something(*_: object) -> str:
    """Stands for whatever a page leaves to its reader."""
    await trio.sleep(0.1)
    return "done"


GIVEN: dict[str, object] = {
    **{name: getattr(replikv, name) for name in replikv.__all__},
    **dict.fromkeys(("call", "compute", "make_report", "run", "schedule", "send", "serve", "work"), do_something),
    "trio": trio,
    "dataclasses": dataclasses,
    "Bank": Bank,
    "bookmark": 0,
    "result": 42,
    "split_name": dict,
}
"""What a reader has by then, by the names that pages give it."""

STORED = {"accounts/alice": 100, "lock": "somebody", "users/ann": {"schema-version": 1, "name": "Ann", "email": None}}

ONLY_COMPILED = {
    "docs/backup.md": "it writes files in threads, which no mock clock waits for",
    "docs/chaos.md": "it takes the members of the reader's cluster",
    "docs/disk.md": "what the disk is to be used for is left to the reader",
    "docs/recovery.md": "it takes the directory of a peer that has lost its majority",
    "docs/security.md": "it takes certificates",
    "docs/simulator.md": "it shows a part of the catalogue of planted bugs",
}
"""Page -> why what it shows cannot run here."""


async def take_part(cluster: Cluster) -> None:
    """Two others, and mails: without them, some of what is shown would wait for ever."""

    async def come() -> None:
        barrier = recipes.Barrier(cluster.store, "phase", 3)
        await barrier.wait()
        async with barrier:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        nursery.start_soon(come)
        while True:
            await recipes.Queue(cluster.store, "mails").put("hello")
            await trio.sleep(1.0)


async def run_fragments(blocks: Iterable[Block], directory: Path) -> None:
    """One after the other, on a cluster of one."""
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        await cluster.store.update(STORED)
        nursery.start_soon(take_part, cluster)
        names: dict[str, Any] = {**GIVEN, "__name__": __name__, "cluster": cluster, "store": cluster.store}
        for block in blocks:
            code = block.code.replace('"/backups/', f'"{directory}/').replace('"state/', f'"{directory}/')
            with trio.move_on_after(SHOWN_S) as shown:
                result = eval(dataclasses.replace(block, code=code).compiled(), names)
                if inspect.iscoroutine(result):
                    await result
            assert not shown.cancelled_caught or "async for" in code, f"{block} waits for ever"
        nursery.cancel_scope.cancel()


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_what_is_marked_as_python_is_python(block: Block) -> None:
    """It can be compiled, ``await`` outside of functions included."""
    block.compiled()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.is_program], ids=str)
def test_a_program_runs(block: Block, tmp_path: Path) -> None:
    """What is a whole program ends by itself, without an error."""
    run_program(block.code, tmp_path)


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS} - set(ONLY_COMPILED)))
async def test_the_fragments_of_a_page_are_true(page: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Who tries what a page shows, in its order, finds names, arguments and results as the page has them."""
    await run_fragments([block for block in BLOCKS if block.page == page and not block.is_program], tmp_path)


PARTS = [
    *("backup", "history", "leadership", "leases", "limits", "outcomes", "state-machines", "transactions"),
    *("typed-maps", "watches"),
    *sorted(f"recipes/{page.stem}" for page in (ROOT / "docs" / "recipes").glob("*.md") if page.stem != "README"),
]
"""Pages of what an application may use or leave."""


@pytest.mark.parametrize("part", PARTS)
def test_a_part_says_when_to_use_it_and_when_not(part: str) -> None:
    """And points to an example, all of which are run by a test."""
    text = (ROOT / "docs" / f"{part}.md").read_text("utf-8")
    assert re.search(r"^## (When to|When,|Which one to use)", text, re.MULTILINE)
    assert re.search(r"^## .*[wW]hen not|^Do(?: not|n't)", text, re.MULTILINE)
    assert re.search(r"\]\((?:\.\./)+examples/\w+\.py\)", text)


def test_every_recipe_has_its_page_and_its_place_in_the_list() -> None:
    """None is to be found by accident."""
    index = (ROOT / "docs" / "recipes" / "README.md").read_text("utf-8")
    pages = {page.name for page in (ROOT / "docs" / "recipes").glob("*.md")} - {"README.md"}
    listed = dict(re.findall(r"^\| \[(\w+)\]\(([\w-]+\.md)\) \|", index, re.MULTILINE))
    assert pages == set(listed.values())
    assert set(listed) <= set(recipes.__all__)


def test_the_tests_that_pages_name_are_there() -> None:
    """Files, and tests in them by name."""
    text = "".join(path.read_text("utf-8") for path in [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "SECURITY.md"])
    named = set(re.findall(r"`(tests/[\w/]+(?:\.py(?:::\w+)?)?)`", text))
    assert [] == [
        name
        for name in sorted(named)
        if not (ROOT / name.partition("::")[0]).exists()
        or f"def {name.partition('::')[2]}{'(' if '::' in name else ''}" not in _source(ROOT / name.partition("::")[0])
    ]


def test_the_bugs_that_pages_name_are_planted() -> None:
    """Those of the simulator are in its catalogue, the others in the tests of the core and of the disk."""
    planted = re.findall(r"`(\w+)`", "".join(re.findall(r"\| ([^|]*) \|$", _bugs(), re.MULTILINE)))
    assert planted
    elsewhere = "".join(_source(path) for path in (ROOT / "tests").rglob("test_planted*.py"))
    known = {name.replace("-", "_") for name in CATALOGUE} | set(re.findall(r"^def (\w+)\(", elsewhere, re.MULTILINE))
    assert [] == [name for name in planted if name not in known]


def test_each_bug_that_others_had_has_a_test_of_its_own() -> None:
    """By the name of a function, not of a file alone."""
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|", _bugs(), re.MULTILINE)
    assert 40 == len(dict(rows))
    assert [] == [number for number, tests in rows if not all("::" in test for test in tests.split(", "))]


def _bugs() -> str:
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    return page[page.index("## Bugs that others had") : page.index("## What users see under faults")]


def _source(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else "def "
