"""What one simulation is like: all of it drawn from the seed, and each of it can be set apart.

Swarm testing (Groce et al., ISSTA 2012): a run in which everything goes wrong at once reaches less than many runs, each
of which leaves some of it out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from random import Random
from typing import Any, Final

__all__ = ["DRIFT_ASSUMED", "Options"]

DRIFT_ASSUMED: Final = 0.05
"""Clocks between 1 - this and 1 + this differ by less than a ninth, which is what a holder of a lease gives away."""
_ALIKE: Final = 0.8

_LATER: Final = 0.5
"""How likely a fault is to be in a run at all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run. Rates are events per simulated second, of the whole cluster; 0 leaves a fault out. Times in seconds."""

    seed: int
    # -- who is there --
    peers: int = 3
    """Voters at the beginning, 1 to 7."""
    spares: int = 1
    """Nodes that may join later."""
    clients: int = 4
    watchers: int = 2
    keys: int = 4
    think_s: float = 0.5
    """The mean pause of a client."""
    reads: float = 0.25
    """Which share of what clients do are reads."""
    give_up: float = 0.0
    """How likely a client is to cancel an operation."""
    chaos_s: float = 20.0
    calm_s: float = 60.0
    """Within how long everything has to be well again when the faults have ended."""
    # -- settings of the cluster --
    heartbeat_s: float = 0.1
    election_heartbeats: int = 10
    lease_reads: bool = False
    message_bytes_max: int = 1 << 20
    inflight_messages_max: int = 256
    uncommitted_bytes_max: int = 1 << 20
    entry_bytes_max: int = 1 << 20
    snapshot_log_entries: int = 50
    trailing_entries: int = 10
    history_revisions: int = 200
    segment_bytes: int = 16384
    request_timeout_s: float = 5.0
    replace_after_s: float = 30.0
    apply_look_s: float = 0.0
    """What a look at the clock costs: applying is sliced by it."""
    turn_s: float = 0.002
    """How long a peer gathers before it has a turn, at most."""
    write_s: float = 0.005
    """How long a write to disk takes, at most."""
    # -- the network --
    delay_s: float = 0.002
    jitter_s: float = 0.003
    reorder: bool = False
    late: float = 0.0
    """How likely a frame is to come up to two seconds late, overtaken by all that were sent meanwhile."""
    loss: float = 0.0
    duplication: float = 0.0
    partitions: float = 0.0
    one_way: float = 0.0
    bridges: float = 0.0
    flaps: float = 0.0
    depositions: float = 0.0
    resets: float = 0.0
    # -- processes and clocks --
    crashes: float = 0.0
    """Power cuts between two calls, and kills of the process."""
    cuts_in_writes: float = 0.0
    """Power cuts in the middle of a call to the disk, drawn among the next ones."""
    stalls: float = 0.0
    drift: float = 0.0
    """Clocks run between 1 - drift and 1 + drift."""
    # -- disks --
    full_disks: float = 0.0
    failing_syncs: float = 0.0
    failing_writes: float = 0.0
    bit_flips: float = 0.0
    # -- the cluster's own --
    changes: float = 0.0
    transfers: float = 0.0
    snapshots: float = 0.0
    # -- leases, sessions, limits, versions, the past --
    holders: int = 2
    """Those who hold leases, and locks by them."""
    locks: int = 1
    lease_ttl_s: float = 2.0
    clock_jumps: float = 0.0
    """Clocks leap ahead, by more than an election timeout: smaller leaps are drift. None ever goes back."""
    settle: float = 0.5
    """How likely a client is to ask what became of an operation whose outcome is unknown."""
    compactions: float = 0.0
    """Which share of what clients do has the history forgotten."""
    sessions_max: int = 1024
    own_limits: bool = False
    """Whether each peer has limits of its own in its settings: those of who leads hold."""
    old_peers: bool = False
    """Whether some run a program, at first, that does not know the newest commands."""
    history_bytes_max: int = 64 << 20
    history_age_s: float = 86_400.0
    watch_buffer: int = 1024
    plain: bool = False
    """Keep to what etcd's specification has words for: no pre-votes; members change one at a time, in one step, and
    never come back; newcomers begin with the first membership and an empty log."""

    @classmethod
    def draw(cls, seed: int) -> Options:
        """The options of a seed."""
        random = Random(f"options of {seed}")  # noqa: S311  # a function of the seed

        def maybe(low: float, high: float, share: float = _LATER) -> float:
            rate = random.uniform(low, high)
            return round(rate, 4) if random.random() < share else 0.0

        lease_reads = random.random() < 0.25
        drawn = cls(
            seed=seed,
            peers=random.choice([1, 2, 3, 3, 3, 3, 4, 5, 5, 7]),
            spares=random.choice([0, 1, 1, 2]),
            clients=random.choice([1, 3, 5, 8]),
            watchers=random.choice([1, 2]),
            keys=random.choice([1, 3, 6]),
            think_s=random.choice([0.1, 0.3, 1.0]),
            reads=random.choice([0.1, 0.25, 0.25, 0.7]),
            give_up=maybe(0.02, 0.1),
            chaos_s=random.choice([10.0, 15.0, 20.0]),
            heartbeat_s=random.choice([0.05, 0.1, 0.1]),
            election_heartbeats=random.choice([5, 10, 10]),
            lease_reads=lease_reads,
            message_bytes_max=random.choice([100, 1000, 1 << 20]),
            inflight_messages_max=random.choice([2, 8, 256]),
            uncommitted_bytes_max=random.choice([2000, 1 << 20]),
            entry_bytes_max=random.choice([1 << 20, 1 << 20, 5000]),
            snapshot_log_entries=random.choice([8, 25, 60, 400]),
            trailing_entries=random.choice([1, 4, 20]),
            history_revisions=random.choice([10, 50, 1000]),
            segment_bytes=random.choice([2048, 8192, 65536]),
            request_timeout_s=random.choice([2.0, 5.0]),
            replace_after_s=random.choice([5.0, 30.0]),
            apply_look_s=random.choice([0.0, 0.0, 0.0004]),
            turn_s=random.choice([0.0005, 0.003]),
            write_s=random.choice([0.001, 0.01, 0.05]),
            delay_s=random.choice([0.0005, 0.002, 0.01]),
            jitter_s=random.choice([0.0005, 0.005, 0.03]),
            reorder=random.random() < 0.5,
            late=maybe(0.002, 0.03, 0.3),
            loss=maybe(0.01, 0.1),
            duplication=maybe(0.01, 0.1),
            partitions=maybe(0.03, 0.25),
            one_way=maybe(0.03, 0.15),
            bridges=maybe(0.02, 0.1, 0.3),
            flaps=maybe(0.05, 0.2, 0.3),
            depositions=maybe(0.03, 0.2),
            resets=maybe(0.05, 0.5),
            crashes=maybe(0.02, 0.2),
            cuts_in_writes=maybe(0.02, 0.2),
            stalls=maybe(0.03, 0.2),
            drift=maybe(0.0, 0.04 if lease_reads else 0.3),
            full_disks=maybe(0.02, 0.1, 0.3),
            failing_syncs=maybe(0.02, 0.1, 0.3),
            failing_writes=maybe(0.02, 0.1, 0.3),
            bit_flips=maybe(0.02, 0.1, 0.4),
            changes=maybe(0.1, 0.5),
            transfers=maybe(0.05, 0.2),
            snapshots=maybe(0.05, 0.3, 0.3),
            holders=random.choice([0, 1, 1, 3]),
            locks=random.choice([1, 1, 2]),
            lease_ttl_s=random.choice([0.8, 1.5, 3.0]),
            clock_jumps=maybe(0.03, 0.15, 0.3),
            settle=random.choice([0.0, 0.5, 1.0]),
            compactions=maybe(0.005, 0.05, 0.3),
            sessions_max=random.choice([1024, 1024, 2, 4]),
            own_limits=random.random() < 0.25,
            old_peers=random.random() < 0.25,
            history_bytes_max=random.choice([64 << 20, 64 << 20, 3000, 20_000]),
            history_age_s=random.choice([86_400.0, 86_400.0, 1.0, 5.0]),
            watch_buffer=random.choice([1024, 8, 1]),
        )
        return drawn._with_clocks_as_assumed(random.random())

    def _with_clocks_as_assumed(self, chance: float) -> Options:
        """What rests on clocks is promised while they run alike: mostly they do where it is
        asked for, and leap in no run in which a lease on reads does not expect it."""
        drift = self.drift
        if self.holders and drift > DRIFT_ASSUMED and chance < _ALIKE:
            drift = round(drift * DRIFT_ASSUMED / 0.3, 4)
        return dataclasses.replace(self, drift=drift, clock_jumps=0.0 if self.lease_reads else self.clock_jumps)

    def with_values(self, values: dict[str, str]) -> Options:
        """These options with some set otherwise, from text. Raises ValueError for what is none, or cannot be read."""
        changes: dict[str, Any] = {}
        for name, text in values.items():
            if name not in FIELDS:
                raise ValueError(f"there is no option {name!r}: there are {', '.join(FIELDS)}")
            changes[name] = _read(name, text, type(getattr(self, name)))
        return dataclasses.replace(self, **changes)

    def traceable(self) -> Options:
        """These options, with all set otherwise that a trace cannot have; short, as a model checker takes minutes, with
        much happening."""
        without = ("duplication", "snapshots", *FAULT_GROUPS[1], *FAULT_GROUPS[2])
        return dataclasses.replace(
            self.with_values(dict.fromkeys(without, "0")),
            plain=True,
            peers=min(self.peers, 5),
            spares=max(self.spares, 1),
            chaos_s=5.0,
            think_s=max(self.think_s, 0.3),
            clients=min(self.clients, 3),
            holders=min(self.holders, 1),
            heartbeat_s=0.2,
            snapshot_log_entries=1 << 20,
            apply_look_s=0.0,
            old_peers=False,  # which start again with the newest program
            partitions=max(self.partitions, 0.2),
            changes=max(self.changes, 0.4),
            transfers=max(self.transfers, 0.2),
        )

    def differences(self) -> dict[str, str]:
        """What is other than the seed has it, as text."""
        drawn = Options.draw(self.seed)
        return {name: str(getattr(self, name)) for name in FIELDS if getattr(self, name) != getattr(drawn, name)}

    def simpler(self) -> Iterator[Options]:
        """Options in which one thing is less, the greatest steps first: what a failing run is shrunk by."""
        replace = dataclasses.replace
        for faults in FAULT_GROUPS:
            smaller = {name: type(getattr(self, name))(0) for name in faults if getattr(self, name)}
            if smaller:
                yield replace(self, **smaller)
        if self.chaos_s > 2:
            yield replace(self, chaos_s=round(self.chaos_s / 2, 2))
            yield replace(self, chaos_s=round(self.chaos_s * 0.8, 2))
        for name, least in (("clients", 1), ("watchers", 0), ("holders", 0), ("spares", 0), ("keys", 1)):
            value = getattr(self, name)
            if value > least:
                yield replace(self, **{name: least})
                if value - 1 > least:
                    yield replace(self, **{name: value - 1})
        if self.peers > 1:
            yield replace(self, peers=self.peers - 1)


_PEERS_MAX: Final = 7
_SHARES: Final = frozenset({"reads", "give_up", "late", "loss", "duplication", "drift", "settle", "compactions"})
"""Likelihoods, and what clocks are off by; all else that is no whole number is a rate or a time."""
_MAY_BE_NONE: Final = frozenset({"spares", "clients", "watchers", "holders"})
_TRUTHS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _read(name: str, text: str, kind: type) -> bool | int | float:
    if kind is bool:
        if (truth := _TRUTHS.get(text.lower())) is None:
            raise ValueError(f"{name} is true or false, not {text!r}")
        return truth
    try:
        value = int(text) if kind is int else float(text)
    except ValueError:
        raise ValueError(f"{name} is a {'whole ' * (kind is int)}number, not {text!r}") from None
    least = int(kind is int and name not in _MAY_BE_NONE)
    most = _PEERS_MAX if name == "peers" else 1 if name in _SHARES else math.inf
    if not least <= value <= most or math.isinf(value):
        bounds = f"between {least} and {most}" if most < math.inf else f"{least} or more"
        raise ValueError(f"{name} is {bounds}, not {text}")
    return value


FAULT_GROUPS: Final = (
    ("partitions", "one_way", "bridges", "flaps", "depositions", "resets"),
    ("crashes", "cuts_in_writes"),
    ("full_disks", "failing_syncs", "failing_writes", "bit_flips"),
    ("changes", "transfers", "snapshots"),
    ("loss",),
    ("duplication",),
    ("reorder",),
    ("late",),
    ("stalls", "clock_jumps"),
    ("stalls",),
    ("clock_jumps",),
    ("drift",),
    ("give_up",),
    ("settle",),
    ("compactions",),
    ("own_limits", "old_peers"),
    ("lease_reads",),
    ("apply_look_s",),
    ("partitions",),
    ("one_way",),
    ("bridges",),
    ("flaps",),
    ("depositions",),
    ("resets",),
    ("crashes",),
    ("cuts_in_writes",),
    ("full_disks",),
    ("failing_syncs",),
    ("failing_writes",),
    ("bit_flips",),
    ("changes",),
    ("transfers",),
    ("snapshots",),
)
FIELDS: Final = tuple(field.name for field in dataclasses.fields(Options) if field.name != "seed")
