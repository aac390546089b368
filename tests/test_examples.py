"""The examples end by themselves, and show what they are there to show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import run_program

EXAMPLES = Path(__file__).parents[1] / "examples"

EXPECTED = {
    "backup_and_restore.py": [
        r"backup: 2 keys at revision 1",
        r"monday\.backup is whole\.",
        r"exported: users/bob \{'name': 'Bob', 'key': \{'\$bytes': 'AP8='\}\}",
        r"restored: \{'name': 'Bob', 'key': b'\\x00\\xff'\}",
        r"its next revision is 1000000002",
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
    "secure_cluster.py": [
        r"b reads True over (TLS|sealed frames)",
        r"a stranger without credentials was refused: .*configure both alike",
        r"a stranger with a certificate that was stolen was refused: .*",
        r"members: \['a', 'b', 'c'\]",
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
    "typed_map.py": [
        r"stored: \{'schema-version': 1, 'name': 'Ann Lee', 'role': 'admin'\}",
        r"the new release reads User\(first='Ann', last='Lee', role=<Role\.ADMIN: 'admin'>, email=None\)",
        r"stored: \{'schema-version': 2, 'first': 'Ann', .*'email': 'ann@example\.org'\}",
        r"the old release: .*it is of schema version 2, and this process knows 1",
        r"not put: 'bob' cannot be put: User\.role: expected a value of Role, found str 'owner'",
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
