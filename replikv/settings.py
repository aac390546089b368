"""Every tunable of replikv, with its unit in its name and the reason of its default.

Settings are local to a peer: nothing that ``apply`` depends on is read from here. What replicas must agree on
travels in commands (``machine/commands.py``, ``machine/governance.py``) that the leader proposes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from replikv.errors import ConfigurationError

__all__ = ["Settings"]

KIB = 1024
MIB = 1024 * KIB

ZONE_BYTES_MAX = 128
"""A zone stands in every handshake and in the membership."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The tunables of one peer. The defaults suit 3 to 5 voters in one data centre; validated when built.

    Raises:
        ConfigurationError: a value out of range, or two that contradict each other; the message names them.
    """

    # -- identity ------------------------------------------------------------------------------------------------------
    cluster_name: str = ""
    """Part of the cluster id: two clusters of the same member ids on one network need two names."""

    zone: str = ""
    """Where this peer runs: a rack, an availability zone. Voters are spread over the zones of those that tell one."""

    # -- time (Raft paper, section 5.6: broadcast time << election timeout << time between failures) ------------------
    heartbeat_interval_s: float = 0.1
    """The leader's heartbeat, and the length of a tick. etcd: 0.1."""
    election_timeout_s: float = 1.0
    """A follower campaigns after one to two of these without a leader. etcd: 1.0, ten heartbeats."""
    request_timeout_s: float = 10.0
    """How long an operation waits for the cluster before it raises UnavailableError or OutcomeUnknownError."""
    shutdown_timeout_s: float = 2.0
    """How long leaving the block may take: handing over, flushing, closing."""

    lease_reads: bool = False
    """Whether the leader answers linearizable reads without asking the others, while a majority has promised to vote
    for nobody (thesis 6.4.1). Saves a round trip per read; the same on every peer. It rests on clocks: each peer's must
    run evenly to within a tenth over an election timeout, and go on while its process is stopped and its machine
    sleeps. Off by default: ReadIndex asks no clock."""

    # -- roles ---------------------------------------------------------------------------------------------------------
    voters_max: int = 5
    """Who joins becomes a voter while there are fewer; the rest are learners, with the same reads, puts and watches.
    Five survive the loss of two; more make each put wait for more disks. dqlite: 3 voters by default."""
    voter_replace_after_s: float = 30.0
    """A voter that is gone for so long gives its vote to a learner that is caught up, if there is one. Long enough for
    a restart or a deployment."""

    # -- sizes of what is proposed: value < command < entry < frame ----------------------------------------------------
    value_bytes_max: int = 1 * MIB
    """One encoded value. etcd: 1.5 MiB a request; we: 1 MiB, since a value is never sliced on its way."""
    key_bytes_max: int = 4 * KIB
    """One key in UTF-8."""
    command_bytes_max: int = 2 * MIB
    """One command: an ``update`` of many keys must fit."""
    entry_bytes_max: int = 4 * MIB
    """One log entry, into which the driver packs the commands of a turn."""
    frame_bytes_max: int = 16 * MIB
    """One frame between peers; a larger one is refused before it is allocated."""

    # -- limits of the whole cluster: those of who leads hold, on every replica alike (docs/limits.md) -----------------
    state_bytes_max: int = 1024 * MIB
    """What the keys and values of the map may cost in memory, about: the map is held by every peer, and travels whole
    where a peer has none. etcd: 2 GB on disk."""
    keys_max: int = 2_000_000
    """Keys in the map. A million small ones take about 350 MB."""
    leases_max: int = 65_536
    """Leases at once: one for each process of the largest clusters, and a thousand for each of fifty."""
    sessions_max: int = 1024
    """Sessions of peers that are remembered, one per start of a peer; above it the least recently used one is
    forgotten, and with it what its last commands were answered. Far more than there are peers."""
    operations_per_command_max: int = 1024
    """Changes in one command. Bounds the longest step that is never sliced. etcd: 128 operations in a transaction."""

    # -- flow control --------------------------------------------------------------------------------------------------
    message_bytes_max: int = 1 * MIB
    """Entries in one AppendEntries, unless a single entry is larger. etcd: 0.5 MiB."""
    inflight_messages_max: int = 256
    """AppendEntries on their way to one follower. etcd: 512."""
    inflight_bytes_max: int = 32 * MIB
    """Bytes of entries on their way to one follower."""
    uncommitted_bytes_max: int = 64 * MIB
    """Bytes a leader may hold that no quorum has yet; proposals above wait. Bounds the log of a leader cut off."""
    proposals_max: int = 2048
    """Operations of this peer in flight; ``put`` waits when there are more. At most half a session's window, so that
    commands whose outcome is open can be remembered beside those in flight."""
    outbox_bytes_max: int = 64 * MIB
    """Bytes queued for one peer's connection; frames above are dropped, and Raft sends them again."""
    apply_slice_s: float = 0.001
    """How long committed commands are applied before other tasks get their turn: long enough to be worth a turn, short
    enough that those who were answered can send more while the rest is applied."""

    # -- the log on disk -----------------------------------------------------------------------------------------------
    wal_segment_bytes: int = 16 * MIB
    """A segment of the write-ahead log, zero-filled and synced before use. etcd: 64 MB."""
    snapshot_log_bytes: int = 64 * MIB
    """A snapshot is taken when the log since the last one is larger than this (and than the last snapshot)."""
    snapshot_log_entries: int = 50_000
    """... or has this many entries. etcd: 10,000 (3.6), of one command each; ours hold up to hundreds."""
    trailing_entries: int = 5_000
    """Entries kept behind a snapshot, so that a follower that was away shortly needs no snapshot. etcd: 5,000."""
    trailing_bytes: int = 16 * MIB
    """... but no more than this many bytes of them."""
    snapshot_chunk_bytes: int = 64 * KIB
    """What a snapshot is encoded, written and sent by; the longest slice of its work."""
    snapshots_kept: int = 2
    """Snapshot files kept on disk."""

    # -- snapshots that travel -----------------------------------------------------------------------------------------
    snapshot_sends_max: int = 2
    """Snapshots on their way from this peer at once; others wait for their turn."""
    snapshot_send_bytes_per_s: int = 64 * MIB
    """Of all of them together: a snapshot must leave room on the network for what is committed meanwhile. TiKV: 100
    MiB/s."""
    snapshot_resume_s: float = 30.0
    """How long what has arrived of a snapshot is kept after its connection broke, to go on from there."""
    catch_up_log_bytes: int = 128 * MIB
    """Entries kept, beyond those behind the newest snapshot, for who is being sent one: without them, the log would
    have moved on when it arrives. Bounds what a slow follower costs."""

    # -- the map -------------------------------------------------------------------------------------------------------
    history_revisions: int = 10_000
    """Revisions of the past that can be read and watched from. The leader moves the floor by a command."""
    history_bytes_max: int = 64 * MIB
    """... unless they hold more bytes than this."""
    history_age_s: float = 86_400.0
    """... or are older than this. Counted by the leader, while it leads: a new one begins anew, and keeps them longer.
    A day: watchers that were away for a night go on where they were, if little was changed."""

    # -- watches -------------------------------------------------------------------------------------------------------
    watches_max: int = 50_000
    """Watches and subscriptions of this process that are open at once: some 5 KB each, their tasks included, and what
    waits for their readers."""
    watch_progress_interval_s: float = 10.0
    """A watch with ``progress=True`` that had nothing to tell for so long tells how far it has come. etcd: 600; ours
    asks nobody."""

    # -- the transport -------------------------------------------------------------------------------------------------
    connect_timeout_s: float = 5.0
    """A dial and its handshake."""
    reconnect_delay_s: float = 0.05
    """The first pause before dialing again; doubles, with jitter, up to ``reconnect_delay_max_s``."""
    reconnect_delay_max_s: float = 1.0
    """The longest pause: below the election timeout, or a healed partition costs an election."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: object = getattr(self, field.name)
            if field.name in ("cluster_name", "zone", "lease_reads"):
                expected = bool if field.name == "lease_reads" else str
                if not isinstance(value, expected):
                    raise ConfigurationError(f"{field.name} must be a {expected.__name__}, not {value!r}")
                continue
            number = int | float if field.name.endswith("_s") else int
            if isinstance(value, bool) or not isinstance(value, number):
                raise ConfigurationError(
                    f"{field.name} must be {'a number' if number is not int else 'an int'}, not {value!r}"
                )
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{field.name} must be finite and greater than 0, not {value!r}")
        for name in ("state_bytes_max", "keys_max", "leases_max", "sessions_max", "operations_per_command_max"):
            if getattr(self, name) >= 1 << 62:
                raise ConfigurationError(f"{name} must be less than 2**62, not {getattr(self, name)}: it is replicated")
        if len(self.zone.encode(errors="replace")) > ZONE_BYTES_MAX:
            raise ConfigurationError(f"zone must be at most {ZONE_BYTES_MAX} bytes, not {self.zone!r}")
        self._ascending("heartbeat_interval_s", "election_timeout_s")
        if round(self.election_timeout_s / self.heartbeat_interval_s) < 2:
            raise ConfigurationError(
                f"election_timeout_s ({self.election_timeout_s}) must be at least two heartbeat_interval_s"
                f" ({self.heartbeat_interval_s}): one lost heartbeat must not start an election"
            )
        self._ascending("value_bytes_max", "command_bytes_max", "entry_bytes_max", "frame_bytes_max")
        self._ascending("message_bytes_max", "frame_bytes_max")
        self._ascending("frame_bytes_max", "outbox_bytes_max")
        self._ascending("key_bytes_max", "command_bytes_max")
        for name, above, overhead in (
            ("value_bytes_max", "command_bytes_max", self.key_bytes_max + KIB),
            ("command_bytes_max", "entry_bytes_max", KIB),
        ):
            inner, outer = getattr(self, name), getattr(self, above)
            if inner + overhead > outer:
                raise ConfigurationError(f"{above} ({outer}) must leave {overhead} bytes beside {name} ({inner})")
        if self.entry_bytes_max + self.message_bytes_max + 64 * KIB > self.frame_bytes_max:
            raise ConfigurationError(
                f"frame_bytes_max ({self.frame_bytes_max}) must hold entry_bytes_max ({self.entry_bytes_max})"
                f" and message_bytes_max ({self.message_bytes_max}) with 64 KiB to spare"
            )
        if self.snapshot_chunk_bytes + KIB > self.frame_bytes_max:
            raise ConfigurationError(
                f"frame_bytes_max ({self.frame_bytes_max}) must hold snapshot_chunk_bytes ({self.snapshot_chunk_bytes})"
            )

    def _ascending(self, *names: str) -> None:
        for lower, upper in itertools.pairwise(names):
            if getattr(self, lower) >= getattr(self, upper):
                raise ConfigurationError(
                    f"{lower} ({getattr(self, lower)}) must be less than {upper} ({getattr(self, upper)})"
                )

    @property
    def election_ticks(self) -> int:
        """The election timeout in ticks of one heartbeat interval."""
        return round(self.election_timeout_s / self.heartbeat_interval_s)
