"""Exactly-once: the sessions of clients, and what their commands were answered (thesis, section 6.3).

Rules, for a command of session s with sequence q that carries the mark b ("acknowledged below"):

1. s is not in the table: UNKNOWN_SESSION, never executed. It may have been executed before s was evicted.
2. The mark of s rises to b, never falls; results below it are forgotten.
3. q is below the mark: STALE. q has a result: that, and nothing is executed. q is a window or more above the mark, or
   above it at all while the results kept for s are too large: BEYOND_WINDOW, until the client acknowledges some. The
   command at the mark is always executed: the client cannot raise the mark before it has its result.
4. Else the command is executed, and its result kept. Commands may come in any order.

A session's id is *the position of the command that registered it*. No client chooses it, so a late duplicate of a
registration opens another session, which nobody uses, rather than reviving one that was evicted: its forgotten commands
could then be executed a second time.

The table is bounded: a registration beyond ``sessions_max`` evicts the session whose last command has the lowest
position, and so does a lower ``sessions_max``. Positions are those of the log, so every replica evicts the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from replikv.errors import InternalError
from replikv.machine.chunks import pack_chunks
from replikv.machine.envelope import Status

__all__ = ["RESULT_BYTES_MAX", "SESSIONS_MAX", "WINDOW", "Session", "Sessions", "SessionsRestorer"]

SESSIONS_MAX: Final = 1024
"""Sessions in the table. One per start of a peer; 50 peers may each restart twenty times while the rest idle."""

WINDOW: Final = 4096
"""Sequences above the mark that may be executed; ``settings.proposals_max`` defaults to as many in flight."""

RESULT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Bytes of results kept for a session, beyond which it must acknowledge some first: ``pop`` answers with values."""

_HEAD: Final = struct.Struct(">BIIQ")
"""Version, sessions_max, window, result_bytes_max: the first chunk."""
_VERSION: Final = 1
_SESSION: Final = struct.Struct(">BQQQQI")
"""An item: 0, session, mark, position of its last command, nonce, bytes of the node id; node id."""
_RESULT: Final = struct.Struct(">BQI")
"""An item: 1, sequence, bytes of the result; result. Of the session before it."""
_SESSION_ITEM: Final = 0
_RESULT_ITEM: Final = 1

_UNKNOWN_SESSION: Final = bytes([Status.UNKNOWN_SESSION])
_STALE: Final = bytes([Status.STALE])
_BEYOND_WINDOW: Final = bytes([Status.BEYOND_WINDOW])
_SEALED: Final = bytes([Status.SEALED])


class Session:
    """What is known of one client."""

    __slots__ = ("mark", "node_id", "nonce", "result_bytes", "results", "used")

    def __init__(self, nonce: int, node_id: bytes, used: int) -> None:
        self.nonce = nonce
        self.node_id = node_id
        """Who registered it, and the number by which he finds it."""
        self.used = used
        """The position of its last command: grows, and differs from that of every other session."""
        self.mark = 0
        """The client never asks again for a sequence below."""
        self.results: dict[int, bytes] = {}
        """sequence -> result, for sequences in [mark, mark + window)."""
        self.result_bytes = 0
        """sum(map(len, results.values()))"""

    def acknowledge(self, below: int) -> None:
        """Raise the mark. O(1) per sequence, amortised: each is passed once."""
        results = self.results
        if below - self.mark <= len(results):
            gone = 0
            for sequence in range(self.mark, below):
                gone += len(results.pop(sequence, b""))
            self.result_bytes -= gone
        else:
            for sequence in [sequence for sequence in results if sequence < below]:
                self.result_bytes -= len(results.pop(sequence))
        self.mark = below

    def keep(self, sequence: int, result: bytes) -> None:
        """Remember a result."""
        self.results[sequence] = result
        self.result_bytes += len(result)

    def copy(self) -> Session:
        """An independent copy: a few microseconds, for a snapshot."""
        other = Session(self.nonce, self.node_id, self.used)
        other.mark, other.result_bytes, other.results = self.mark, self.result_bytes, self.results.copy()
        return other


class Sessions:
    """The table of sessions. Its limits are replicated state: the snapshot has them."""

    def __init__(
        self,
        *,
        sessions_max: int = SESSIONS_MAX,
        window: int = WINDOW,
        result_bytes_max: int = RESULT_BYTES_MAX,
    ) -> None:
        self.sessions_max = sessions_max
        self.window = window
        self.result_bytes_max = result_bytes_max
        self.table: dict[int, Session] = {}
        """session id -> session, by ascending id."""

    def register(self, position: int, nonce: int, node_id: bytes) -> int:
        """Open the session whose id is ``position``, and evict the least recently used one if the table is full."""
        self._evict(self.sessions_max - 1)
        self.table[position] = Session(nonce, node_id, position)
        return position

    def limit(self, sessions_max: int) -> None:
        """Keep to another ``sessions_max`` from now on; evicts the least recently used ones, if there are too many.

        Whoever of them is alive opens another session with its next command: what was refused was not executed.
        """
        self.sessions_max = sessions_max
        self._evict(sessions_max)

    def _evict(self, left: int) -> None:
        excess = len(self.table) - left
        if excess == 1:
            del self.table[min(self.table, key=lambda session: self.table[session].used)]
        elif excess > 0:
            for session in sorted(self.table, key=lambda session: self.table[session].used)[:excess]:
                del self.table[session]

    def answer(
        self,
        position: int,
        session_id: int,
        sequence: int,
        acknowledged_below: int,
        execute: Callable[[bytes, int], bytes],
        command: bytes,
        offset: int,
    ) -> bytes:
        """The result of a command: the one that is kept, or that of ``execute(command, offset)``, called once.

        ``execute`` never raises.
        """
        session = self.table.get(session_id)
        if session is None:
            return _UNKNOWN_SESSION
        session.used = position
        if acknowledged_below > session.mark:
            session.acknowledge(acknowledged_below)
        results = session.results
        if sequence in results:
            return results[sequence]
        if sequence < session.mark:
            return _STALE
        if sequence >= session.mark + self.window:
            return _BEYOND_WINDOW
        # Never the one at the mark: whoever waits for it could not raise the mark otherwise, and make room.
        if session.result_bytes > self.result_bytes_max and sequence > session.mark:
            return _BEYOND_WINDOW
        result = execute(command, offset)
        results[sequence] = result
        session.result_bytes += len(result)
        return result

    def seal(self, position: int, session_id: int, target: int, acknowledged_below: int) -> bytes:
        """Settle the outcome of ``target``: its kept result, or SEALED, which is kept so that it is never executed.

        Harmless when repeated, so a seal takes no sequence of its own; anybody may propose it who knows the token.
        """
        session = self.table.get(session_id)
        if session is None:
            return _UNKNOWN_SESSION
        session.used = position
        if acknowledged_below > session.mark:
            session.acknowledge(acknowledged_below)
        result = session.results.get(target)
        if result is None:
            if target < session.mark:
                return _STALE
            if target >= session.mark + self.window:
                return _BEYOND_WINDOW
            result = _SEALED
            session.keep(target, result)
        return result

    def result(self, session_id: int, sequence: int) -> bytes | None:
        """The kept result of a command, None if there is none (never executed, acknowledged, or evicted)."""
        session = self.table.get(session_id)
        return None if session is None else session.results.get(sequence)

    def find(self, nonce: int, node_id: str) -> int | None:
        """The newest session that was registered with this nonce by this node, None if there is none. O(sessions)."""
        wanted = (nonce, node_id.encode())
        return next((id_ for id_, one in reversed(self.table.items()) if (one.nonce, one.node_id) == wanted), None)

    def snapshot(self) -> Iterator[bytes]:
        """The table as of this call, in chunks. It is copied here: at most ``sessions_max`` windows of references."""
        copies = [(session_id, session.copy()) for session_id, session in self.table.items()]
        head = _HEAD.pack(_VERSION, self.sessions_max, self.window, self.result_bytes_max)
        return _chunks(head, copies)


def _chunks(head: bytes, sessions: Iterable[tuple[int, Session]]) -> Iterator[bytes]:
    yield head
    yield from pack_chunks(_items(sessions))


def _items(sessions: Iterable[tuple[int, Session]]) -> Iterator[bytes]:
    for session_id, one in sessions:
        head = _SESSION.pack(_SESSION_ITEM, session_id, one.mark, one.used, one.nonce, len(one.node_id))
        yield head + one.node_id
        for sequence in sorted(one.results):  # in the order of execution they would tell of restores
            result = one.results[sequence]
            yield _RESULT.pack(_RESULT_ITEM, sequence, len(result)) + result


class SessionsRestorer:
    """Builds a table from the chunks of :meth:`Sessions.snapshot`, one at a time."""

    def __init__(self) -> None:
        self._sessions: Sessions | None = None
        """None before the first chunk."""
        self._last: Session | None = None

    def feed(self, chunk: bytes) -> None:
        """Read one chunk. Raises InternalError for what no snapshot of this version has."""
        try:
            if self._sessions is None:
                version, sessions_max, window, result_bytes_max = _HEAD.unpack(chunk)
                if version != _VERSION:
                    raise InternalError(f"a session table of format {version} in the snapshot: upgrade this replikv")
                self._sessions = Sessions(sessions_max=sessions_max, window=window, result_bytes_max=result_bytes_max)
            else:
                self._read(self._sessions, chunk)
        except (struct.error, IndexError) as exc:
            raise InternalError(f"a chunk of sessions that no version of replikv writes: {exc}") from exc

    def finish(self) -> Sessions:
        """The table. Raises InternalError when there was no chunk."""
        if self._sessions is None:
            raise InternalError("the snapshot has no session table")
        return self._sessions

    def _read(self, sessions: Sessions, chunk: bytes) -> None:
        position, end = 0, len(chunk)
        while position < end:
            if chunk[position] == _SESSION_ITEM:
                _, session_id, mark, used, nonce, size = _SESSION.unpack_from(chunk, position)
                start = position + _SESSION.size
                position = start + size
                self._last = Session(nonce, chunk[start:position], used)
                self._last.mark = mark
                sessions.table[session_id] = self._last
            elif chunk[position] == _RESULT_ITEM and self._last is not None:
                _, sequence, size = _RESULT.unpack_from(chunk, position)
                start = position + _RESULT.size
                position = start + size
                self._last.keep(sequence, chunk[start:position])
            else:
                raise InternalError(f"an item of kind {chunk[position]} in the session table of a snapshot")
        if position != end:
            raise InternalError("an item of the session table is longer than its chunk")
