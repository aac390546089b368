"""Exactly-once: the table of sessions (thesis, section 6.3)."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.errors import InternalError
from replikv.machine.envelope import Status
from replikv.machine.sessions import Sessions, SessionsRestorer

UNKNOWN = bytes([Status.UNKNOWN_SESSION])
STALE = bytes([Status.STALE])
BEYOND = bytes([Status.BEYOND_WINDOW])
SEALED = bytes([Status.SEALED])


class Client:
    """Sends commands to a table and counts what was executed."""

    def __init__(self, **limits: int) -> None:
        self.sessions = Sessions(**limits)
        self.position = 0
        self.executed: Counter[bytes] = Counter()

    def register(self, nonce: int = 1, node_id: bytes = b"a") -> int:
        self.position += 1
        return self.sessions.register(self.position, nonce, node_id)

    def execute(self, command: bytes, offset: int) -> bytes:
        self.executed[command[offset:]] += 1
        return b"\0" + command[offset:]

    def send(self, session: int, sequence: int, below: int = 0, payload: bytes | None = None) -> bytes:
        self.position += 1
        command = b"--" + (b"%d" % sequence if payload is None else payload)
        return self.sessions.answer(self.position, session, sequence, below, self.execute, command, 2)

    def seal(self, session: int, target: int, below: int = 0) -> bytes:
        self.position += 1
        return self.sessions.seal(self.position, session, target, below)


def restored(sessions: Sessions) -> Sessions:
    restorer = SessionsRestorer()
    for chunk in sessions.snapshot():
        restorer.feed(chunk)
    return restorer.finish()


def test_a_repeated_command_is_answered_not_executed() -> None:
    """A known sequence gets its first result, whatever stands in the repetition."""
    client = Client()
    session = client.register()

    assert b"\x003" == client.send(session, 3)
    assert b"\x003" == client.send(session, 3, payload=b"other")
    assert {b"3": 1} == client.executed
    assert b"\x003" == client.sessions.result(session, 3)
    assert client.sessions.result(session, 4) is client.sessions.result(99, 3) is None


def test_commands_come_in_any_order() -> None:
    """The window is no queue: lower sequences may follow higher ones."""
    client = Client()
    session = client.register()
    answers = [client.send(session, sequence) for sequence in (7, 0, 3, 1)]

    assert [b"\x007", b"\x000", b"\x003", b"\x001"] == answers


def test_the_mark_forgets_results_and_never_falls() -> None:
    """What is acknowledged is STALE for ever; a lower mark of a late command changes nothing."""
    client = Client()
    session = client.register()
    for sequence in range(5):
        client.send(session, sequence)

    assert b"\x005" == client.send(session, 5, below=4)
    assert [4, 5] == sorted(client.sessions.table[session].results)
    assert STALE == client.send(session, 3)
    assert b"\x006" == client.send(session, 6, below=1)
    assert STALE == client.send(session, 3)
    assert STALE == client.send(session, 7, below=8)
    assert {} == client.sessions.table[session].results
    assert 0 == client.sessions.table[session].result_bytes


def test_a_mark_may_leap() -> None:
    """A mark far above all sequences costs no more than the results that it drops."""
    client = Client()
    session = client.register()
    client.send(session, 0)
    client.send(session, 2**64 - 1, below=2**64 - 2)

    assert {2**64 - 1} == set(client.sessions.table[session].results)
    assert 2 + len("18446744073709551615") - 1 == client.sessions.table[session].result_bytes


def test_a_leap_keeps_what_is_not_acknowledged() -> None:
    """The mark itself is not below the mark."""
    client = Client()
    session = client.register()
    client.send(session, 10)
    client.send(session, 11)

    assert b"\x0011" == client.send(session, 11, below=11)
    assert STALE == client.send(session, 10)
    assert {b"10": 1, b"11": 1} == client.executed


def test_the_window() -> None:
    """A sequence a window above the mark is refused unexecuted, until the mark rises."""
    client = Client(window=4)
    session = client.register()

    assert BEYOND == client.send(session, 4)
    assert b"\x003" == client.send(session, 3)
    assert b"\x004" == client.send(session, 4, below=1)
    assert {b"3": 1, b"4": 1} == client.executed


def test_the_bytes_of_results_are_bounded() -> None:
    """A client that lets large results pile up is refused, until it acknowledges some, with the same command even."""
    client = Client(result_bytes_max=1000)
    session = client.register()
    client.send(session, 0, payload=b"x" * 600)
    client.send(session, 1, payload=b"x" * 600)

    assert BEYOND == client.send(session, 2)
    assert b"\0" + b"x" * 600 == client.send(session, 1)
    assert b"\x002" == client.send(session, 2, below=1)


def test_the_command_at_the_mark_is_always_executed() -> None:
    """Whatever came before it: a client that waits for its result could not acknowledge anything otherwise."""
    client = Client(result_bytes_max=1000)
    session = client.register()
    client.send(session, 2, payload=b"x" * 1200)

    assert BEYOND == client.send(session, 1)
    assert b"\x000" == client.send(session, 0)
    assert b"\x001" == client.send(session, 1, below=1)


def test_an_unknown_session_is_never_executed() -> None:
    """Not registered, or evicted: refused."""
    client = Client(sessions_max=2)
    first = client.register()

    assert UNKNOWN == client.send(first + 77, 0)
    client.register()
    client.register()
    assert UNKNOWN == client.send(first, 0)
    assert UNKNOWN == client.seal(first, 0)
    assert {} == client.executed


def test_the_least_recently_used_session_is_evicted() -> None:
    """Any command of a session counts as use, also a refused one and a seal."""
    client = Client(sessions_max=3, window=1)
    one, two, three = client.register(), client.register(), client.register()
    client.send(one, 0)
    client.send(three, 99)
    client.seal(two, 0)
    client.register()

    assert [two, three] == list(client.sessions.table)[:2]
    client.send(three, 99)
    client.register()
    assert three in client.sessions.table
    assert two not in client.sessions.table


def test_a_late_duplicate_of_a_registration_revives_nobody() -> None:
    """The same registration twice opens two sessions; an evicted id never comes back."""
    client = Client(sessions_max=1)
    first = client.register(nonce=5)
    client.send(first, 0)
    second = client.register(nonce=5)

    assert first != second
    assert UNKNOWN == client.send(first, 0)
    assert {b"0": 1} == client.executed


def test_a_registration_is_found_by_its_nonce() -> None:
    """By nonce and node together; of several the newest; also after a restore."""
    client = Client()
    client.register(nonce=5, node_id=b"a")
    newest = client.register(nonce=5, node_id=b"a")
    client.register(nonce=5, node_id=b"b")

    for sessions in (client.sessions, restored(client.sessions)):
        assert newest == sessions.find(5, "a")
        assert sessions.find(6, "a") is None


def test_a_seal_answers_with_the_result() -> None:
    """A command that was executed keeps its result; the seal may be repeated."""
    client = Client()
    session = client.register()
    client.send(session, 2)

    assert b"\x002" == client.seal(session, 2) == client.seal(session, 2)


def test_a_seal_stops_what_was_not_executed() -> None:
    """The command, when it comes at last, is answered SEALED, and is not executed."""
    client = Client()
    session = client.register()

    assert SEALED == client.seal(session, 2) == client.send(session, 2) == client.seal(session, 2)
    assert b"\x001" == client.send(session, 1)
    assert {b"1": 1} == client.executed


def test_a_seal_outside_of_the_window() -> None:
    """Below the mark the client knew; above the window nothing can be kept, so nothing is promised."""
    client = Client(window=4)
    session = client.register()

    assert STALE == client.seal(session, 0, below=1)
    assert BEYOND == client.seal(session, 5)
    assert b"\x004" == client.send(session, 4)


def test_a_snapshot_is_not_disturbed() -> None:
    """It has the table as of the call, though commands are applied before its chunks are read."""
    client = Client()
    session = client.register()
    client.send(session, 0)
    expected = list(client.sessions.snapshot())
    snapshot = client.sessions.snapshot()
    client.send(session, 1, below=1)
    client.register()

    assert expected == list(snapshot)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["register", "send", "send", "seal"]),
            st.integers(1, 12),
            st.integers(0, 12),
            st.integers(0, 10),
        ),
        max_size=60,
    ),
    st.integers(0, 60),
)
def test_a_restored_table_answers_alike(steps: list[tuple[str, int, int, int]], when: int) -> None:
    """Answers, evictions and snapshots are functions of the log, whether the table was restored on the way or not."""
    one, other = (Client(sessions_max=3, window=6, result_bytes_max=6) for _ in range(2))
    for index, (step, session, sequence, below) in enumerate(steps):
        if index == when:
            other.sessions = restored(other.sessions)
        for client in (one, other):
            if step == "register":
                client.register(sequence)
        if step == "send":
            assert one.send(session, sequence, below) == other.send(session, sequence, below)
        elif step == "seal":
            assert one.seal(session, sequence, below) == other.seal(session, sequence, below)
        for kept in one.sessions.table.values():
            assert sum(map(len, kept.results.values())) == kept.result_bytes
            assert all(kept.mark <= sequence < kept.mark + 6 for sequence in kept.results)
    assert len(one.sessions.table) <= 3
    assert list(one.sessions.snapshot()) == list(other.sessions.snapshot())


@pytest.mark.parametrize(
    "chunks",
    [[], [b""], [b"\x02" + b"\0" * 16], [b"\x01" + b"\0" * 16, b"\x07"], [b"\x01" + b"\0" * 16, b"\x01" + b"\0" * 12]],
)
def test_a_broken_snapshot(chunks: list[bytes]) -> None:
    """Chunks that no table gave are an InternalError."""
    restorer = SessionsRestorer()

    def restore() -> None:
        for chunk in chunks:
            restorer.feed(chunk)
        restorer.finish()

    with pytest.raises(InternalError):
        restore()
