"""The examples end by themselves, and show what they are there to show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import run_program

EXAMPLES = Path(__file__).parents[1] / "examples"

EXPECTED = {
    "job_queue.py": [
        r"[abc]: done ant.png",
        r"[abc] has ended, with SIGKILL: it is started again",
        r"[abc]: bear.png was begun before, by somebody who has not finished",
        r"[abc]: done bear.png",
        r"[abc]: put aside broken.png, number 3, until somebody has a look",
        r"every job was done, or put aside: \['ant.png', 'bear.png', 'broken.png', 'cat.png', 'dog.png', 'eel.png'\]",
    ],
    "leading.py": [
        r"a leads, with token \d+",
        r"a does not lead any more: the leadership 'bookkeeper' was lost",
        r"b leads, with token \d+",
        r"a late write with a's token is refused",
        r"a is back, behind c in the line, and b goes on",
    ],
    "leases.py": [
        r"a sees presence/c: at work",
        r"all three are there",
        r"b has left its block, and a sees its key go",
        r"c stops: lease \d could not be kept alive",
        r"c was cut off, and a sees its key go, too",
    ],
    "quickstart.py": [
        r"leader: [abc]",
        r"b was called back: put flags/dark-mode = True at revision 1",
        r"c reads True and knows",
        r"c watched jobs/2 become ready",
        r"c reads \{'jobs/1': 'taken by a', 'jobs/2': 'ready'\}",
    ],
    "rolling_replacement.py": [
        r"leader: [abc]",
        r"d joined, has everything, and votes",
        r"a was removed, and has ended",
        r"members: \{'d': 'voter', 'e': 'voter', 'f': 'voter'\}",
        r"the work has gone on all the time",
    ],
    "service_registry.py": [
        r"greetings are offered by \['b', 'c'\]",
        r"(a was told: hello from [bc]\n.*){4}a could not reach b: OSError",
        r"a could not reach b: \w+\n.*hello from c\n.*hello from c\n",
        r"greetings are offered by \['c'\]",
    ],
    "shared_config.py": [
        r"a: workers is now 8",
        r"b: workers is now 8",
        r"c: workers is now 8",
        r"c: workers takes a value like 4, not 'many'",
        r"a: workers is now 4",
        r"b: runs with .*'dark-mode': True",
    ],
    "split_brain.py": [
        r"put on [a-e]: OutcomeUnknownError: .*no leader; 3 of 5 voters cannot be reached",
        r"get on [a-e]: UnavailableError: .*no leader; 3 of 5 voters cannot be reached",
        r"put on [a-e]: UnavailableError: .*no leader; 3 of 5 voters cannot be reached",
        r"[a-e] has stepped down: a follower of [a-e], in term \d",
        r"equal, byte for byte: <2 keys at revision 3>",
    ],
}
"""Example -> what it prints, among other things."""


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example_shows_what_it_is_there_for(name: str, tmp_path: Path) -> None:
    """It ends by itself, with exit code 0 and no file left, and has printed what a reader expects."""
    output = run_program((EXAMPLES / name).read_text("utf-8"), tmp_path)
    assert [] == [line for line in EXPECTED[name] if re.search(line, output) is None], output


def test_every_example_is_run() -> None:
    """None is forgotten above."""
    assert sorted(EXPECTED) == sorted(path.name for path in EXAMPLES.glob("*.py"))
