"""The map as a state machine: applies map commands to the keyspace.

Rules, the same on every replica:

1. A command is read whole before anything is changed: it is applied wholly or not at all.
2. All its changes share one revision. One that changes nothing takes none.
3. What it depends on is in the command, in the keyspace at and above the logical floor, in the table of leases, and in
   the limits and versions that all replicas have agreed on.
4. Whatever the bytes, there is a result. One that cannot be read, or that does not fit what is stored, is FAILED; one
   that names a lease which is not there NO_LEASE; one that the state would grow too large by OVER_LIMIT.
5. Whatever a record's lease is, it is in the table: a lease leaves the table with the last of its keys.
6. Operations that came with a later version of the commands do nothing before an UPGRADE to it: see governance.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from replikv.errors import EncodingError
from replikv.machine import commands
from replikv.machine.base import StateMachine
from replikv.machine.choices import decode_transact
from replikv.machine.commands import COMPACT, COMPARE, GRANT, ITEM, KEYED, REPLACE, REVOKE, UPDATE, Operation
from replikv.machine.envelope import Status
from replikv.machine.governance import Governance
from replikv.machine.history import KeyspaceRestorer, keyspace_chunks
from replikv.machine.keyspace import KEY_BYTES, Keyspace, Write
from replikv.machine.leases import Leases
from replikv.machine.ranges import KeyRange
from replikv.machine.record import lease_of, mod_revision_of, value_of
from replikv.machine.refusal import RefusedError
from replikv.machine.transactions import Transacting
from replikv.machine.values import decode_value, encode_value, equal_values

__all__ = ["KeyValue"]

_OK: Final = bytes([Status.OK])
_FAILED: Final = bytes([Status.FAILED])
_PUT: Final = int(Operation.PUT)  # an IntEnum member costs an attribute look-up per command
_KEYED_BYTES: Final = KEYED.size
_unpack_keyed: Final = KEYED.unpack_from
_pack_number: Final = struct.Struct(">BQ").pack
_pack_outcome: Final = struct.Struct(">BQB").pack
_pack_prefix: Final = struct.Struct(">BQIB").pack
_INTEGER_BYTES_MAX: Final = 1 << 30  # INCREMENT: what was proposed and what was stored were both bounded before


class KeyValue(StateMachine):
    """The replicated map. ``keyspace`` is read by anybody and changed by commands only; a restore replaces it."""

    def __init__(self, governance: Governance | None = None) -> None:
        self.keyspace = Keyspace()
        self.leases = Leases()
        self.governance = governance or Governance()
        """Shared with the replica, which changes it."""
        self._operations: Final[dict[int, Callable[[bytes, int], bytes]]] = {
            Operation.DELETE: self._delete,
            Operation.UPDATE: self._update,
            Operation.DELETE_PREFIX: self._delete_prefix,
            Operation.POP: self._pop,
            Operation.SETDEFAULT: self._setdefault,
            Operation.INCREMENT: self._increment,
            Operation.COMPARE_AND_SET: self._compare_and_set,
            Operation.REPLACE: self._replace,
            Operation.COMPACT: self._compact,
        }
        self._later_operations: Final[dict[int, Callable[[bytes, int], bytes]]] = {
            Operation.GRANT: self._grant,
            Operation.REVOKE: self._revoke,
            Operation.ATTACH: self._attach,
            Operation.TRANSACT: self._transact,
        }
        """Those of version 1."""

    def apply(self, position: int, command: bytes) -> bytes:  # noqa: ARG002  # the map has no use for positions
        """Apply one payload; the result without its status. Raises EncodingError for what is FAILED."""
        result = self.execute(command, 0)
        if result[0] != Status.OK:  # NO_LEASE and OVER_LIMIT, too: a machine has errors and results
            raise EncodingError(result[1:].decode())
        return result[1:]

    def execute(self, data: bytes, offset: int) -> bytes:
        """Apply the payload that begins at ``offset``; the result with its status. Never raises."""
        try:
            operation = data[offset]
            if operation == _PUT:
                _, key_size, lease = _unpack_keyed(data, offset)
                end = offset + _KEYED_BYTES + key_size
                value = data[end:]
                if not value:
                    raise RefusedError("the command ends before its value")
                keyspace, limits = self.keyspace, self.governance.limits
                name = data[offset + _KEYED_BYTES : end]
                key = name.decode()
                if (
                    lease
                    or keyspace.state_bytes + len(data) + KEY_BYTES > limits.state_bytes
                    or keyspace.key_count >= limits.keys
                ):
                    return _pack_number(0, self._commit(((key, value, lease),)))
                return _pack_number(0, keyspace.put(key, value, 0, name))
            return self._find(operation)(data, offset)
        except RefusedError as exc:
            return bytes([exc.status]) + str(exc).encode()
        except EncodingError:  # its text may quote cbor2, whose words differ from version to version
            return _FAILED + b"a value is not one that replikv has encoded"
        except (struct.error, IndexError):
            return _FAILED + b"the command is shorter than its fields say"
        except UnicodeDecodeError:
            return _FAILED + b"the key is not UTF-8"

    def _find(self, operation: int) -> Callable[[bytes, int], bytes]:
        apply = self._operations.get(operation)
        if apply is None and self.governance.versions.commands >= 1:
            apply = self._later_operations.get(operation)
        if apply is None:
            raise RefusedError(f"no operation of the map has the number {operation}: upgrade this cluster")
        return apply

    def _commit(self, writes: Collection[Write]) -> int:
        """Make the writes, which are of distinct keys, at the next revision; the newest one. All of them or none.

        Raises RefusedError: NO_LEASE, OVER_LIMIT.
        """
        for _, value, lease in writes:
            if lease and value is not None and not self.leases.alive(lease):
                raise RefusedError(no_lease(lease), Status.NO_LEASE)
        self._check_room(writes)
        return self.keyspace.commit(writes)

    def _check_room(self, writes: Collection[Write]) -> None:
        """Whatever makes the state smaller is let through, also where there is too much already."""
        keyspace, limits = self.keyspace, self.governance.limits
        most = sum(KEY_BYTES + len(key) + len(value) for key, value, _ in writes if value is not None)
        if keyspace.state_bytes + most <= limits.state_bytes and len(keyspace) + len(writes) <= limits.keys:
            return
        keys, size = keyspace.growth(writes)
        if keys > 0 and len(keyspace) + keys > limits.keys:
            raise RefusedError(
                f"the map has {len(keyspace)} keys, and no room for {keys} more with at most {limits.keys}"
                " (keys_max): delete some, or raise it",
                Status.OVER_LIMIT,
            )
        if size > 0 and keyspace.state_bytes + size > limits.state_bytes:
            raise RefusedError(
                f"the map takes {keyspace.state_bytes} bytes, and has no room for {size} more with at most"
                f" {limits.state_bytes} (state_bytes_max): delete some, or raise it",
                Status.OVER_LIMIT,
            )

    # -- operations: each reads all of its payload first ---------------------------------------------------------------

    def _delete(self, data: bytes, offset: int) -> bytes:
        key, _, _ = _read_keyed(data, offset)
        done = key in self.keyspace
        return _pack_outcome(0, self.keyspace.commit(((key, None, 0),)), done)

    def _update(self, data: bytes, offset: int) -> bytes:
        _, count, lease = UPDATE.unpack_from(data, offset)
        limit = self.governance.limits.operations
        if count > limit and self.governance.versions.commands >= 1:
            raise RefusedError(
                f"more than {limit} changes in one command (operations_per_command_max)", Status.OVER_LIMIT
            )
        position = offset + UPDATE.size
        writes: dict[str, Write] = {}
        for _ in range(count):
            key_size, value_size = ITEM.unpack_from(data, position)
            start = position + ITEM.size
            end = start + key_size
            position = end + value_size
            key = data[start:end].decode()
            if key in writes or not value_size:
                raise RefusedError("the update has a key twice, or one without a value")
            writes[key] = (key, data[end:position], lease)
        if position != len(data):
            raise RefusedError("the update is not as long as its items say")
        return _pack_number(0, self._commit(writes.values()))

    def _delete_prefix(self, data: bytes, offset: int) -> bytes:
        prefix, limit, _ = _read_keyed(data, offset)
        if self.governance.versions.commands >= 1:
            limit = min(limit, self.governance.limits.operations)
        keys = self.keyspace.first_keys(KeyRange(prefix=prefix), min(limit, len(self.keyspace)) + 1)
        more = len(keys) > limit
        del keys[limit:]
        revision = self.keyspace.commit([(key, None, 0) for key in keys])
        return _pack_prefix(0, revision, len(keys), more)

    def _pop(self, data: bytes, offset: int) -> bytes:
        key, _, _ = _read_keyed(data, offset)
        old = self.keyspace.get_value(key)
        return _pack_outcome(0, self.keyspace.commit(((key, None, 0),)), old is not None) + (old or b"")

    def _setdefault(self, data: bytes, offset: int) -> bytes:
        key, lease, value = _read_keyed(data, offset, has_value=True)
        old = self.keyspace.get_value(key)
        if old is not None:
            return _pack_outcome(0, self.keyspace.revision, True) + old
        return _pack_outcome(0, self._commit(((key, value, lease),)), False)

    def _increment(self, data: bytes, offset: int) -> bytes:
        key, _, by_data = _read_keyed(data, offset, has_value=True)
        by = decode_value(by_data)
        record = self.keyspace.get(key)
        old, lease = (0, 0) if record is None else (decode_value(value_of(record)), lease_of(record))
        for number, name in ((by, "the increment"), (old, f"the value of '{key[:100]}'")):
            if type(number) is not int:  # a bool is no number here
                raise RefusedError(f"{name} is a {type(number).__name__}, not an int: nothing was added")
        value = encode_value(old + by, _INTEGER_BYTES_MAX)
        self._check_room(((key, value, lease),))  # an ending lease keeps it: then the key ends with that
        return _pack_number(0, self.keyspace.put(key, value, lease)) + value

    def _compare_and_set(self, data: bytes, offset: int) -> bytes:
        _, key_size, lease, expected_size, flags = COMPARE.unpack_from(data, offset)
        start = offset + COMPARE.size
        end = start + key_size
        key = data[start:end].decode()
        expected = data[end : end + expected_size]
        value = data[end + expected_size :]
        if end + expected_size > len(data) or flags != (
            (commands.EXPECTED_PRESENT if expected else 0) | (commands.VALUE_PRESENT if value else 0)
        ):
            raise RefusedError("the values are not as the flags of the command say")
        old = self.keyspace.get_value(key)
        done = equal_values(old, expected) if old and expected else not old and not expected
        if not done:
            return _pack_outcome(0, self.keyspace.revision, False)
        return _pack_outcome(0, self._commit(((key, value or None, lease if value else 0),)), True)

    def _replace(self, data: bytes, offset: int) -> bytes:
        _, key_size, lease, expected = REPLACE.unpack_from(data, offset)
        start = offset + REPLACE.size
        key = data[start : start + key_size].decode()
        value = data[start + key_size :]
        if not value:
            raise RefusedError("the command ends before its value")
        record = self.keyspace.get(key)
        if expected != (0 if record is None else mod_revision_of(record)):
            return _pack_outcome(0, self.keyspace.revision, False)
        return _pack_outcome(0, self._commit(((key, value, lease),)), True)

    def _compact(self, data: bytes, offset: int) -> bytes:
        _, floor = COMPACT.unpack_from(data, offset)
        return _pack_number(0, self.keyspace.compact(floor))

    def _grant(self, data: bytes, offset: int) -> bytes:
        _, ttl_ms = GRANT.unpack(data[offset:])
        limit = self.governance.limits.leases
        if not ttl_ms:
            raise RefusedError("a lease is granted for at least a millisecond")
        if len(self.leases) >= limit:
            raise RefusedError(
                f"there are {limit} leases already (leases_max): share one among keys", Status.OVER_LIMIT
            )
        return _pack_number(0, self.leases.grant(ttl_ms))

    def _revoke(self, data: bytes, offset: int) -> bytes:
        _, lease = REVOKE.unpack(data[offset:])
        if lease not in self.leases.table:
            raise RefusedError(no_lease(lease), Status.NO_LEASE)
        limit = self.governance.limits.operations
        keys = self.keyspace.attachments.keys(lease, limit)
        more = self.keyspace.attachments.count(lease) > limit
        if more:
            self.leases.begin_end(lease)
        else:
            self.leases.end(lease)
        return _pack_prefix(0, self.keyspace.commit([(key, None, lease) for key in keys]), len(keys), more)

    def _attach(self, data: bytes, offset: int) -> bytes:
        key, lease, _ = _read_keyed(data, offset)
        if lease and not self.leases.alive(lease):
            raise RefusedError(no_lease(lease), Status.NO_LEASE)
        record = self.keyspace.get(key)
        if record is None or lease_of(record) == lease:
            return _pack_outcome(0, self.keyspace.revision, record is not None)
        return _pack_outcome(0, self.keyspace.put(key, value_of(record), lease), True)

    def _transact(self, data: bytes, offset: int) -> bytes:
        limit = self.governance.limits.operations
        choice, operations = decode_transact(data, offset, limit)
        transacting = Transacting(self.keyspace, operations, limit)
        result = transacting.run(choice)  # nothing is changed before all of it is known
        return _pack_number(0, self._commit(transacting.writes())) + result

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Iterator[bytes]:
        """The keyspace as of this call, with its history from the logical floor on."""
        return keyspace_chunks(self.keyspace)

    def restorer(self) -> KeyspaceRestorer:
        """Builds another keyspace aside, chunk by chunk; assign what ``finish`` returns to ``keyspace``."""
        return KeyspaceRestorer(pinned_bytes_max=self.keyspace.pinned_bytes_max)

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the keyspace by the one that :meth:`snapshot` gave."""
        restorer = self.restorer()
        for chunk in chunks:
            restorer.feed(chunk)
        self.keyspace = restorer.finish()


def no_lease(lease: int) -> str:
    """Why a command was answered NO_LEASE."""
    return f"there is no lease {lease}: it has expired, was revoked, or was never granted"


def _read_keyed(data: bytes, offset: int, *, has_value: bool = False) -> tuple[str, int, bytes]:
    _, key_size, number = KEYED.unpack_from(data, offset)
    start = offset + KEYED.size
    end = start + key_size
    value = data[end:]
    if end > len(data) or bool(value) != has_value:
        raise RefusedError("the command is not as long as its fields say")
    return data[start:end].decode(), number, value
