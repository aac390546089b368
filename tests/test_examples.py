"""The examples end by themselves, and show what they are there to show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
    "history.py": [
        r"tea was 3, and is 4",
        r"missed: coffee went from 5 to 6",
        r"the history begins at revision 3",
        r"CompactedError: revision 1 is no longer held",
        r"and today is as it was: \{'coffee': 6, 'tea': 4\}",
    ],
    "limits.py": [
        r"refused: the map has 3 keys, and no room for 1 more with at most 3 \(keys_max\)",
        r"there is room: \{'a': 'changed', 'c': 3, 'd': 4\}",
        r"the doctor: the map has 3 of 3 keys",
    ],
    "custom_machine.py": [
        r"ann has 5",
        r"refused alike on every replica: the state machine raised ValueError",
        r"a runs version 2; in effect is 1; .*wait for c, which has a StateMachine of version 1",
        r"b: not yet: the state machine raised ValueError",
        r"all run version 2, and it is in effect: ann has 3",
        r"equal, byte for byte",
    ],
    "barrier.py": [
        r"all are through with load",
        r"all are through with compute",
        r"cleo has cleaned up\n(\w+ goes, knowing that all have cleaned up\n){3}",
    ],
    "counter.py": [
        r"300 orders, numbered 1 to 300",
    ],
    "election.py": [
        r"[ab] was elected, with token \d+",
        r"requests go to http://a/ready",
        r"requests go to http://b/ready",
        r"[ab] serves no more\nnobody serves|nobody serves\n[ab] serves no more",
    ],
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
        r"[bc] leads, with token \d+",
        r"a late write with a's token is refused",
        r"a is back, at the end of the line, and who leads goes on",
    ],
    "leases.py": [
        r"a sees presence/c: at work",
        r"all three are there",
        r"b has left its block, and a sees its key go",
        r"c stops: lease \d could not be kept alive",
        r"c was cut off, and a sees its key go, too",
    ],
    "lock.py": [
        r"a has the lock, with token \d",
        r"c has the lock, with token \d, and gets stuck",
        r"the lock is held by c",
        r"b has the lock, with token \d",
        r"c wakes up and writes: refused",
        r"c is told that the lock is lost",
        r"the report was written by b",
    ],
    "damaged_disk.py": [
        r"a does not start: 0000000000000001-0000000000000001\.wal is damaged at byte \d+",
        r"replikv verify: 1 Damaged\.",
        r"b and c go on",
        r"a has joined anew: \{'jobs/1': 'ready', 'jobs/2': 'ready'\}",
    ],
    "quickstart.py": [
        r"leader: [abc]",
        r"b was called back: put flags/dark-mode = True at revision 1",
        r"c reads True and knows",
        r"c watched jobs/2 become ready",
        r"c reads \{'jobs/1': 'taken by a', 'jobs/2': 'ready'\}",
    ],
    "read_write_lock.py": [
        r"ann reads version 0\nbob reads version 0",
        r"wim writes alone, with token 3\nwim has written\n\w+ reads version 1",
    ],
    "rolling_replacement.py": [
        r"leader: [abc]",
        r"d joined, has everything, and votes",
        r"a was removed, and has ended",
        r"members: \{'d': 'voter', 'e': 'voter', 'f': 'voter'\}",
        r"the work has gone on all the time",
    ],
    "semaphore.py": [
        r"crawler 0 is in; inside: \[0\]",
        r"crawler 5 is in; inside: \[4, 5\]",
        r"the licence is taken, and nobody waits for it here",
    ],
    "service_registry.py": [
        r"greetings are offered by \['b', 'c'\]",
        r"(a was told: hello from [bc]\n.*){4}a could not reach b: OSError",
        r"a could not reach b: \w+\n.*hello from c\n.*hello from c\n",
        r"greetings are offered by \['c'\]",
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
        r"put on [a-e]: OutcomeUnknownError: .* may have been applied, or may yet be: .*cluster\.outcome",
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
    "transactions.py": [
        r"still open",
        r"20 orders, 10 times sold out",
        r"tickets left, orders: \(0, 20\)",
        r"refused: customer 0 has only \d+",
        r"^closed",
        r"shop is yours",
        r"shop belongs to alice",
    ],
    "watch_index.py": [
        r"complete up to revision 1: new: 2 3, paid: 1",
        r"2 went from new to paid",
        r"1 went from paid to the archive",
        r"4 came in as new",
        r"complete up to revision 5: new: 3 4, paid: 2",
        r"the display: 4 went from new to 100 % packed",
    ],
    "unknown_outcome.py": [
        r"100: no answer; paid or not\?",
        r"the first payment: applied=False, it had not been applied when this was asked, and never will be",
        r"paid again, in all: 100",
        r"the second payment: applied=True",
        r"not paid again, in all: 150",
    ],
}
"""Example -> what it prints, among other things."""


AT_ONCE = 4
"""Examples that are run at the same time: most of what they do is wait."""


@pytest.fixture(scope="module")
def outputs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[str]]]:
    """What each of the examples that are asked for prints, or how it fails."""
    asked = [item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")]
    names = [name for name in asked if name in EXPECTED]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            name: pool.submit(run_program, (EXAMPLES / name).read_text("utf-8"), tmp_path_factory.mktemp("example"))
            for name in names
        }


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example_shows_what_it_is_there_for(name: str, outputs: Mapping[str, Future[str]]) -> None:
    """It ends by itself, with exit code 0 and no file left, and has printed what a reader expects."""
    output = outputs[name].result()
    assert [] == [line for line in EXPECTED[name] if re.search(line, output, re.MULTILINE) is None], output


def test_every_example_is_run() -> None:
    """None is forgotten above."""
    assert sorted(EXPECTED) == sorted(path.name for path in EXAMPLES.glob("*.py"))
