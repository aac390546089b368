"""Everything that is replicated, as the peer sees it: sessions, the map, the application's own machine, the position.

Equal logs make equal replicas, byte for byte, whatever happened locally meanwhile: snapshots, pins, trimming.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from replikv.errors import ConfigurationError, InternalError, UpgradeRequiredError
from replikv.machine.base import StateMachine
from replikv.machine.chunks import split_chunks
from replikv.machine.digests import DIGEST_BYTES, INTERVAL, NO_DIGEST, Notes, StateDigest
from replikv.machine.envelope import HEADER, HEADER_BYTES, VERSION, CommandKind, Status
from replikv.machine.governance import (
    KNOWN_VERSION,
    ClusterOperation,
    Governance,
    Versions,
    decode_set_limits,
    decode_upgrade,
)
from replikv.machine.history import KeyspaceRestorer
from replikv.machine.keyspace import Keyspace
from replikv.machine.keyvalue import KeyValue
from replikv.machine.leases import LeasesRestorer
from replikv.machine.sessions import Sessions, SessionsRestorer

__all__ = ["Replica", "Restorer"]

_OK: Final = bytes([Status.OK])
_FAILED: Final = bytes([Status.FAILED])
_UNKNOWN_COMMAND: Final = bytes([Status.UNKNOWN_COMMAND])
_NUMBER: Final = struct.Struct(">Q")
_REGISTERED: Final = struct.Struct(">BQ")
_unpack_header: Final = HEADER.unpack_from
_MAP: Final = int(CommandKind.MAP)  # an IntEnum member costs an attribute look-up per command
_CUSTOM: Final = int(CommandKind.CUSTOM)
_REGISTER: Final = int(CommandKind.REGISTER)
_SEAL: Final = int(CommandKind.SEAL)
_CLUSTER: Final = int(CommandKind.CLUSTER)
_NODE_ID_BYTES_MAX: Final = 1024
_APPLIED_BYTES: Final = 64 * 1024
"""Of commands and of the changes that they make: about 100 of the smallest, and a millisecond."""
_FREED_PARTS: Final = 4
"""Parts of a keyspace that was replaced which are freed at a time: about 2 ms, where it had a million keys."""

# The first byte of a chunk says whose it is.
_HEAD_SECTION: Final = 1
_SESSIONS_SECTION: Final = 2
_MAP_SECTION: Final = 3
_CUSTOM_SECTION: Final = 4
_END_SECTION: Final = 5
_GOVERNANCE_SECTION: Final = 6
_LEASES_SECTION: Final = 7
_ORDER: Final = {
    section: place
    for place, section in enumerate(
        (
            _HEAD_SECTION,
            _GOVERNANCE_SECTION,
            _SESSIONS_SECTION,
            _LEASES_SECTION,
            _MAP_SECTION,
            _CUSTOM_SECTION,
            _END_SECTION,
        )
    )
}
"""Section -> its place in the order in which they follow."""
_HEAD: Final = struct.Struct(">BBQB")
"""Section, version, position, 1 if there is a custom machine."""
_SUMS: Final = struct.Struct(">QIQQQQIQ")
"""What a digest is made of: position, chain, revision, floor, bytes of the state, the lease that is granted next, how
many there are, sessions; then the sum over the records, in decimal."""
_END: Final = struct.Struct(">BQ")
"""Section, number of chunks before this one."""
_FIRST_FORMAT: Final = 1
"""Without governance and leases: written as long as no UPGRADE was applied, so that every member can read it."""
_FORMAT: Final = 2


class Replica:
    """The replicated state of one peer. Called from one task; reads of ``keyspace`` go on between commands."""

    def __init__(self, custom: StateMachine | None = None) -> None:
        self.position = 0
        """How many commands of the log have been applied, and how many numbers :meth:`advance` has left out. One with
        the state in every snapshot."""
        self.sessions = Sessions()
        self.governance = Governance()
        self.map = KeyValue(self.governance)
        self.custom = custom
        self._replaced: list[Keyspace] = []
        """What :meth:`trim` is to free: keyspaces that were replaced, or given up before they were complete."""
        self.known: Final = Versions(KNOWN_VERSION, custom.version if custom is not None else 0)
        """What this program knows to apply."""
        self.notes: Final = Notes()
        """Digests of this replica, to be compared with those of others."""
        self._execute_map = self.map.execute

    @property
    def keyspace(self) -> Keyspace:
        """The map's data. Another object after a restore: do not keep it across an ``await``."""
        return self.map.keyspace

    # -- commands ------------------------------------------------------------------------------------------------------

    def apply(self, command: bytes) -> bytes:
        """Apply one command, as :meth:`apply_many`."""
        return self.apply_many((command,))[0]

    def apply_many(self, commands: Sequence[bytes]) -> list[bytes]:
        """Apply encoded envelopes in order and return their results, whose first byte is a Status.

        Never raises because of what is in one, or because of the custom machine (but for MemoryError, which is no
        result that other replicas would come to): there is a result, and the position grows. But for one command:

        Raises:
            UpgradeRequiredError: what comes now in the log is for replicas that know more than this one. It has not
                been applied, and nothing may be applied after it.
        """
        results: list[bytes] = []
        while (start := len(results)) < len(commands):
            results += self.apply_some(commands[start:])
        return results

    def apply_some(self, commands: Sequence[bytes]) -> list[bytes]:
        """:meth:`apply_many` up to where much was done, but at least one; the results of those that were applied.

        A command may change a thousand keys, and 64 of those take half a second.
        """
        if not commands:
            return []
        apply = self._apply
        keyspace = self.map.keyspace
        size = sum(map(len, commands))
        if size > _APPLIED_BYTES:
            sizes = list(itertools.accumulate(map(len, commands)))
            commands = commands[: max(1, bisect.bisect_right(sizes, _APPLIED_BYTES))]
            size = sizes[len(commands) - 1]
        most = keyspace.changed_bytes + _APPLIED_BYTES - size
        results: list[bytes] = []
        enough = False
        while not enough and (start := len(results)) < len(commands):
            # A checksum is the same however it is cut, so the chain is carried on for many results at once; behind the
            # first UPGRADE it begins.
            upgraded = self.governance.versions.commands > 0
            room = INTERVAL - self.position % INTERVAL if upgraded else 1
            for command in commands[start : start + room]:
                results.append(apply(command))
                if keyspace.changed_bytes > most:
                    enough = True
                    break
            if upgraded:
                self.governance.chain = zlib.crc32(b"".join(results[start:]), self.governance.chain)
                if not self.position % INTERVAL:
                    self._note()
        return results

    def _apply(self, command: bytes) -> bytes:
        self.position = position = self.position + 1
        if len(command) < HEADER_BYTES:
            return _FAILED + b"the command is shorter than its header"
        version, kind, _, session_id, sequence, below = _unpack_header(command)
        if version != VERSION:
            return _FAILED + b"the command is of another version of replikv: upgrade this cluster"
        execute: Callable[[bytes, int], bytes]
        if kind == _MAP:
            execute = self._execute_map
        elif kind == _CUSTOM:
            execute = self._execute_custom
        elif kind == _REGISTER:
            return self._register(position, session_id, sequence, command[HEADER_BYTES:])
        elif kind == _SEAL:
            return self._seal(position, session_id, below, command[HEADER_BYTES:])
        elif kind == _CLUSTER:
            execute = self._govern
        else:
            execute = _unknown_command
        if not session_id:
            return execute(command, HEADER_BYTES)
        return self.sessions.answer(position, session_id, sequence, below, execute, command, HEADER_BYTES)

    def _note(self) -> None:
        keyspace, leases = self.keyspace, self.map.leases
        sums = _SUMS.pack(
            self.position,
            self.governance.chain,
            keyspace.revision,
            keyspace.floor,
            keyspace.state_bytes,
            leases.next_id,
            len(leases),
            len(self.sessions.table),
        )
        state = hashlib.blake2b(sums + b"%d" % keyspace.digest_sum, digest_size=DIGEST_BYTES).digest()
        told = self._custom_digest()
        machine = hashlib.blake2b(told, digest_size=DIGEST_BYTES).digest() if told else NO_DIGEST
        self.notes.add(self.position, StateDigest(state, machine))

    def _custom_digest(self) -> bytes:
        if self.custom is None:
            return b""
        try:
            told = self.custom.digest()
        except MemoryError:
            raise
        except Exception as exc:  # whatever it raises, it raises on every replica
            return f"raised {type(exc).__qualname__}".encode()
        return told if type(told) is bytes else f"returned {type(told).__qualname__}".encode()

    def advance(self, numbers: int) -> None:
        """Leave so many positions and revisions out. Not a command: for a replica that begins a new log.

        Positions are the ids of sessions, revisions are what watchers go on from, and either may fence: one that was
        handed out by a log whose end is lost must not be handed out again. Nor may a lease: its holder may live.
        """
        self.position += numbers
        self.map.leases.next_id += numbers
        self.keyspace.advance(numbers)
        self.notes.clear()

    def _govern(self, command: bytes, offset: int) -> bytes:
        try:
            operation = command[offset]
            if operation == ClusterOperation.UPGRADE:
                self._upgrade(decode_upgrade(command, offset))
            elif operation == ClusterOperation.SET_LIMITS and self.governance.versions.commands >= 1:
                self.governance.limits = decode_set_limits(command, offset)
                self.sessions.limit(self.governance.limits.sessions)
            else:
                return _UNKNOWN_COMMAND
        except (IndexError, struct.error, InternalError):
            return _FAILED + b"a command for the whole replica that no version of replikv writes"
        return _OK

    def _upgrade(self, wanted: Versions) -> None:
        if (unknown := self.unknown(wanted)) is not None:
            self.position -= 1  # it is as if it had not been there
            raise UpgradeRequiredError(
                f"the cluster goes on with {unknown}: start this peer with the program that the others run; what it has"
                " on disk is whole"
            )
        now = self.governance.versions
        self.governance.versions = now.raised(wanted)
        if self.custom is not None and self.governance.versions.machine > now.machine:
            self.custom.activate(self.governance.versions.machine)

    def unknown(self, wanted: Versions) -> str | None:
        """What of these versions this replica does not know, in words; None if it knows all of it."""
        known = self.known
        if wanted.commands > known.commands:
            return f"commands of version {wanted.commands} of replikv, and this peer knows {known.commands}"
        if self.custom is not None and wanted.machine > known.machine:
            return f"version {wanted.machine} of its StateMachine, and this peer has {known.machine}"
        return None

    def _execute_custom(self, command: bytes, offset: int) -> bytes:
        if self.custom is None:
            return _UNKNOWN_COMMAND
        try:
            result = self.custom.apply(self.position, command[offset:])
        except MemoryError:
            raise
        except Exception as exc:  # whatever it raises, it raises on every replica
            return _FAILED + f"the state machine raised {type(exc).__qualname__}".encode()
        if type(result) is not bytes:
            return _FAILED + f"the state machine returned {type(result).__qualname__}, not bytes".encode()
        return _OK + result

    def _register(self, position: int, session_id: int, nonce: int, node_id: bytes) -> bytes:
        if session_id or len(node_id) > _NODE_ID_BYTES_MAX:
            return _FAILED + b"a registration belongs to no session, and its node id is at most 1024 bytes"
        return _REGISTERED.pack(Status.OK, self.sessions.register(position, nonce, node_id))

    def _seal(self, position: int, session_id: int, below: int, payload: bytes) -> bytes:
        if len(payload) != _NUMBER.size:
            return _FAILED + b"a seal names one sequence of eight bytes"
        return self.sessions.seal(position, session_id, _NUMBER.unpack(payload)[0], below)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshot(self, *, breaths: bool = False) -> Iterator[bytes]:
        """Position and all state as of this call, in chunks of a millisecond at most, whatever is applied meanwhile.

        The boundaries of the chunks are part of it. Dropping the iterator half-way frees what it held. ``breaths`` are
        empty chunks, no part of it, which come when there was no chunk for a millisecond: for who works in slices.
        """
        upgraded = self.governance.versions != Versions(0, 0)
        head = _HEAD.pack(_HEAD_SECTION, _FORMAT if upgraded else _FIRST_FORMAT, self.position, self.custom is not None)
        sections = [(_SESSIONS_SECTION, self.sessions.snapshot()), (_MAP_SECTION, self.map.snapshot())]
        if upgraded:
            sections.insert(0, (_GOVERNANCE_SECTION, iter([self.governance.encode()])))
            sections.insert(2, (_LEASES_SECTION, self.map.leases.snapshot()))
        if self.custom is not None:
            sections.append((_CUSTOM_SECTION, split_chunks(self.custom.snapshot())))
        chunks = _chunks(head, sections)
        return chunks if breaths else filter(None, chunks)

    def restorer(self) -> Restorer:
        """Takes a snapshot chunk by chunk, and changes this replica when it is finished, at once."""
        return Restorer(self)

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace everything by what :meth:`snapshot` gave. When it raises, this replica is as it was."""
        restorer = self.restorer()
        for chunk in chunks:
            restorer.feed(chunk)
        restorer.finish()

    def discard(self, keyspace: Keyspace) -> None:
        """Have :meth:`trim` free a keyspace: a million keys that are freed at once are a pause."""
        self._replaced.append(keyspace)

    def trim(self, changes_max: int) -> None:
        """Free memory that nobody can reach any more: up to about so many changes, or some thousand keys.

        Call it every now and then. It changes nothing that can be seen.
        """
        self.keyspace.trim(changes_max)
        for keyspace in list(self._replaced):
            for _ in range(_FREED_PARTS):
                if not keyspace.free(changes_max):
                    self._replaced.remove(keyspace)
                    break

    def digest(self) -> bytes:
        """SHA-256 of the snapshot: equal on any two replicas at the same position. Takes as long as a snapshot."""
        digest = hashlib.sha256()
        for chunk in self.snapshot():
            digest.update(_NUMBER.pack(len(chunk)))
            digest.update(chunk)
        return digest.digest()


def _unknown_command(_command: bytes, _offset: int) -> bytes:
    return _UNKNOWN_COMMAND


def _chunks(head: bytes, sections: list[tuple[int, Iterator[bytes]]]) -> Iterator[bytes]:
    yield head
    count = 1
    for section, chunks in sections:
        prefix = bytes([section])
        for chunk in chunks:
            if not chunk:
                yield chunk
                continue
            yield prefix + chunk
            count += 1
    yield _END.pack(_END_SECTION, count)


class Restorer:
    """Builds the state of a snapshot aside, one chunk at a time, each in under a millisecond.

    ``finish`` swaps it in; a restorer that is dropped before has changed nothing; ``abandon`` frees what it had built
    bit by bit. The chunks of a custom machine are kept until then, since only the machine can read them: its
    ``restore`` is called by ``finish``.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._section = 0
        """The section of the last chunk, 0 before the first: as ordered by ``_ORDER``."""
        self._chunks = 0
        self._position = 0
        self._has_custom = False
        self._governance = Governance()
        self._sessions = SessionsRestorer()
        self._leases = LeasesRestorer()
        self._map: KeyspaceRestorer = replica.map.restorer()
        self._custom: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Read one chunk.

        Raises:
            ConfigurationError: the snapshot has state of a custom machine, and this replica has no such machine.
            UpgradeRequiredError: the snapshot has state of commands that this replica does not know.
            InternalError: no chunk of a snapshot of this version, or not the next one.
        """
        section = chunk[0] if chunk else 0
        place = _ORDER.get(section, -1)
        if place < _ORDER.get(self._section, 0) or (self._section == 0) != (section == _HEAD_SECTION):
            raise InternalError(f"a chunk of section {section} behind one of section {self._section} in a snapshot")
        if section == _SESSIONS_SECTION:
            self._sessions.feed(chunk[1:])
        elif section == _MAP_SECTION:
            self._map.feed(chunk[1:])
        elif section == _CUSTOM_SECTION and self._has_custom:
            self._custom.append(chunk[1:])
        elif section == _LEASES_SECTION:
            self._leases.feed(chunk[1:])
        elif section == _GOVERNANCE_SECTION:
            self._governance = Governance.decode(chunk[1:])
            self._check_known()
        elif section == _HEAD_SECTION:
            self._head(chunk)
        elif section != _END_SECTION or self._section == _END_SECTION or chunk != _END.pack(section, self._chunks):
            raise InternalError(f"an unexpected chunk of section {section} in a snapshot, after {self._chunks} chunks")
        self._section = section
        self._chunks += 1

    @property
    def complete(self) -> bool:
        """Whether the last chunk has been read."""
        return self._section == _END_SECTION

    def finish(self) -> None:
        """Swap it all in. When this raises, as the custom machine's ``restore`` may, nothing has changed."""
        if not self.complete:
            raise InternalError(f"the snapshot ends after {self._chunks} chunks, in section {self._section}")
        replica = self._replica
        sessions, leases, keyspace = self._sessions.finish(), self._leases.finish(), self._map.finish()
        if strange := keyspace.attachments.leases() - leases.table.keys():
            raise InternalError(
                f"the snapshot has keys attached to leases that it does not have: {sorted(strange)[:8]}"
            )
        if self._has_custom and replica.custom is not None:
            self._restore_custom(replica.custom)
        replica.notes.clear()
        replica.discard(replica.keyspace)
        replica.sessions, replica.map.keyspace, replica.position = sessions, keyspace, self._position
        replica.map.leases = leases
        replica.governance = replica.map.governance = self._governance

    def abandon(self) -> None:
        """Nothing will come of it: have the replica free what was built so far. Does nothing after ``finish``."""
        keyspace = self._map.abandon()
        if keyspace is not None:
            self._replica.discard(keyspace)

    def _restore_custom(self, custom: StateMachine) -> None:
        custom.activate(max(1, self._governance.versions.machine))
        try:
            custom.restore(iter(self._custom))
        except BaseException:
            custom.activate(max(1, self._replica.governance.versions.machine))
            raise

    def _check_known(self) -> None:
        if (unknown := self._replica.unknown(self._governance.versions)) is not None:
            raise UpgradeRequiredError(
                f"the snapshot is of a cluster that goes on with {unknown}: start this peer with the program that the"
                " others run; what it has on disk is whole"
            )

    def _head(self, chunk: bytes) -> None:
        if len(chunk) != _HEAD.size or not _FIRST_FORMAT <= chunk[1] <= _FORMAT:
            raise InternalError("a snapshot of a format that this replikv does not read: upgrade it")
        _, _, self._position, has_custom = _HEAD.unpack(chunk)
        self._has_custom = bool(has_custom)
        if self._has_custom and self._replica.custom is None:
            raise ConfigurationError(
                "the snapshot has the state of a StateMachine, but this cluster was opened without one:"
                " give it as machine=, as the other peers do"
            )
