"""What a peer that is broken, or of another version, may send: it is dropped, and nobody ends because of it."""

from __future__ import annotations

import pytest
import trio
from clusters import id_of, peer_of, running

from replikv.machine.envelope import HEADER, CommandKind, Envelope, pack_commands
from replikv.machine.governance import Versions, encode_upgrade
from replikv.peer.protocol import (
    SnapshotHeader,
    encode_forwarded,
    encode_message,
    encode_refusal,
    encode_snapshot_header,
)
from replikv.raft.entries import Entry, EntryKind, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.messages import AppendEntries

HEADER_OF_NOBODY = encode_snapshot_header(SnapshotHeader(1, SnapshotMetadata(1, 1, Membership())))

UPGRADE = Envelope(CommandKind.CLUSTER, 0, 0, 0, encode_upgrade(Versions(99, 99))).encode()
"""What would stop every peer, if somebody but the leader could have it in the log."""


def poison(record: bytes) -> bytes:
    """A membership entry of a newer term that nobody could read, not even after a restart."""
    entry = Entry(1, 99, record, EntryKind.MEMBERSHIP)
    return encode_message(
        AppendEntries(to="", sender="", term=99, previous_index=0, previous_term=0, entries=(entry,), commit=0)
    )


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\xff garbage",
        bytes([1]) * 40,
        HEADER_OF_NOBODY,
        encode_refusal(12345, "nobody"),
        encode_forwarded(1, b"garbage"),
        encode_forwarded(1, pack_commands([b"short"])),
        encode_forwarded(1, pack_commands([b""])),
        encode_forwarded(1, b""),
        encode_forwarded(1, pack_commands([UPGRADE])),
        poison(b"garbage"),
        poison(b"{}"),
        poison(b'{"changes":[{"kind":"add-voter","node_id":7}],"transition":"auto"}'),
    ],
    ids=range(14),
)
async def test_a_frame_that_is_none_harms_nobody(autojump_clock: trio.abc.Clock, frame: bytes) -> None:
    """Sent to the leader and to a follower: all three go on as before, in the same term."""
    async with running() as peers:
        leader = await peers.leader()
        term = leader.status().term
        mad, other = peers.without(leader)
        for _ in range(3):
            assert peer_of(mad)._transport.send(id_of(leader), frame)
            assert peer_of(mad)._transport.send(id_of(other), frame)
            await trio.sleep(0.1)
        for value, cluster in enumerate(peers.all):
            await cluster.store.put("key", value)
        assert term == leader.status().term
        await peers.converge()


@pytest.mark.parametrize(
    "command",
    [
        HEADER.pack(1, 99, 0, 0, 0, 0) + b"of a kind that nobody knows",
        HEADER.pack(77, CommandKind.MAP, 0, 0, 0, 0) + b"of a version that is none",
        HEADER.pack(1, CommandKind.MAP, 0, 0, 0, 0) + b"\xfe no operation",
        HEADER.pack(1, CommandKind.MAP, 0, 12345, 1, 0) + b"of a session that was never opened",
        HEADER.pack(1, CommandKind.SEAL, 0, 1, 1, 1) + b"short",
    ],
    ids=range(5),
)
async def test_a_command_that_means_nothing_changes_nothing(autojump_clock: trio.abc.Clock, command: bytes) -> None:
    """It is in the log for good: every replica comes to the same refusal, and goes on, also after it."""
    async with running() as peers:
        leader = await peers.leader()
        mad = peers.without(leader)[0]
        await mad.store.put("key", "before")
        peer_of(mad)._transport.send(id_of(leader), encode_forwarded(999, pack_commands([command])))
        position = peer_of(leader).replica.position
        await trio.sleep(0.5)
        assert position + 1 == peer_of(leader).replica.position
        await mad.store.put("key", "after")
        await peers.converge()
        assert 2 == leader.store.revision


@pytest.mark.parametrize("frames", [[b"garbage"], [HEADER_OF_NOBODY, b"garbage"], [HEADER_OF_NOBODY]], ids=range(3))
async def test_a_channel_of_garbage_harms_nobody(autojump_clock: trio.abc.Clock, frames: list[bytes]) -> None:
    """Nor one that is opened and left alone."""
    async with running() as peers:
        leader = await peers.leader()
        mad, other = peers.without(leader)
        channel = await peer_of(mad)._transport.open_channel(id_of(other))
        for frame in frames:
            await channel.send(frame)
        await trio.sleep(1.0)
        await channel.aclose()
        await other.store.put("key", 1)
        await peers.converge()
