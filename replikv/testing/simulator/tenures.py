"""Who was promised which lease, for how long, and what became of it.

===========================  ========================================================================================
leases last                  nobody but its holder ends a lease before its time is up, counted from when the question
                             was sent that he was told the answer of; on whichever clock, by whichever leader
ended leases are over        nobody is told that he has a lease that had ended when he asked
holders stop in time         nobody believes to have a lease, by nine tenths of it on his own clock, that a leader has
                             ended
lock exclusivity             of those who believe to hold a lock there is one
tokens grow                  who takes a lock has a greater token than whoever took it before
fenced writes                what was written under a token comes before what is written under a greater one
===========================  ========================================================================================

The third and the fourth rest on clocks that differ by less than a tenth. The first is computed for the fastest clock
there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from replikv.testing.simulator.options import DRIFT_ASSUMED
from replikv.testing.simulator.oracle import broken

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["Tenure", "Tenures"]

_LOOKS: Final = 100
"""So many looks at a clock may put it ahead, where looking costs time."""


class Tenure:
    """A lease in somebody's hands. He believes to have it until his own clock says ``expires``."""

    def __init__(self, process: Process, lease: int, ttl_s: float, expires: float) -> None:
        self.process = process
        self.lease = lease
        self.ttl_s = ttl_s
        self.expires = expires
        self.over = False

    def believed(self) -> bool:
        """Whether its holder takes it for his own now."""
        return not self.over and not self.process.over and self.process.host.time() < self.expires


class Tenures:
    """Of all leases of one run."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        options = simulation.options
        self._rate_max = 1 + options.drift
        self._slack_s = 1e-6 + _LOOKS * options.apply_look_s
        self._clocks_agree = options.drift <= DRIFT_ASSUMED
        # Lease -> (when the question was sent, for how long it was granted), in simulated time.
        self._promised: dict[int, tuple[float, float]] = {}
        # Lease -> (when the first replica had ended it, whether by a leader).
        self._ended: dict[int, tuple[float, bool]] = {}
        # Lease -> who has it.
        self._tenures: dict[int, Tenure] = {}
        # Lock -> those who have taken it and may believe to have it; and the greatest token.
        self._holders: dict[str, list[Tenure]] = {}
        self._tokens: dict[str, int] = {}
        # Lock -> (revision, token) of what was written under it.
        self._fenced: dict[str, list[tuple[int, int]]] = {}

    def promised(self, lease: int, ttl_s: float, sent: float) -> None:
        """A holder is told that he has the lease for that long from when the question was sent."""
        ended = self._ended.get(lease)
        if ended is not None and ended[0] < sent:
            broken("ended leases are over", f"lease {lease} is kept alive at {sent:.3f}, and ended at {ended[0]:.3f}")
        before = self._promised.get(lease, (0.0, 0.0))
        self._promised[lease] = max(before, (sent, ttl_s))
        if ended is not None and ended[1]:
            self._check_lasted(lease, ended[0])

    def ended(self, lease: int, *, by_leader: bool) -> None:
        """A replica has applied a command that ends it, before all others."""
        if lease in self._ended:
            return
        now = self.simulation.now
        self._ended[lease] = (now, by_leader)
        self.simulation.counts["leases expired" if by_leader else "leases revoked"] += 1
        if by_leader:
            self._check_lasted(lease, now)
            if lease in self._tenures:
                self.believed(self._tenures[lease])

    def believed(self, tenure: Tenure) -> None:
        """A holder counts on a lease, until a moment on his own clock."""
        self._tenures[tenure.lease] = tenure
        ended = self._ended.get(tenure.lease)
        if ended is not None and ended[1] and self._clocks_agree and tenure.believed():
            broken(
                "holders stop in time",
                f"{tenure.process.node_id} believes to have lease {tenure.lease} for"
                f" {tenure.expires - tenure.process.host.time():.3f} s more on its clock, and it ended at"
                f" {ended[0]:.3f}",
            )

    def _check_lasted(self, lease: int, ended: float) -> None:
        if lease not in self._promised:
            return  # whoever asked for it was not told of it
        sent, ttl_s = self._promised[lease]
        if ended < sent + ttl_s / self._rate_max - self._slack_s:
            broken(
                "leases last",
                f"lease {lease} of {ttl_s} s was ended {ended - sent:.3f} s after a question to keep it alive was sent"
                " that its holder was told the answer of",
            )

    # -- locks ---------------------------------------------------------------------------------------------------------

    def acquired(self, lock: str, tenure: Tenure, token: int) -> None:
        """A holder takes a lock for his own from now on."""
        simulation = self.simulation
        simulation.counts["locks taken"] += 1
        simulation.tell(f"{tenure.process.node_id} has the lock {lock} by lease {tenure.lease}, with token {token}")
        if not self._clocks_agree:
            return
        others = [other for other in self._holders.get(lock, ()) if other.believed()]
        if others:
            broken(
                "lock exclusivity",
                f"{tenure.process.node_id} takes {lock} by lease {tenure.lease}, and {others[0].process.node_id}"
                f" believes to have it by lease {others[0].lease} for {others[0].expires:.3f} more on its clock",
            )
        self._holders[lock] = [tenure]
        if token <= self._tokens.get(lock, 0):
            broken("tokens grow", f"{lock} is taken with token {token} after {self._tokens[lock]}")
        self._tokens[lock] = token

    def wrote(self, lock: str, token: int, revision: int) -> None:
        """What a holder wrote under his token was done."""
        self._fenced.setdefault(lock, []).append((revision, token))

    def judge(self) -> None:
        """In the end."""
        for lock, writes in self._fenced.items():
            tokens = [token for _, token in sorted(writes)]
            if tokens != sorted(tokens):
                broken("fenced writes", f"under {lock} was written with the tokens {tokens}, in this order")
        for process in self.simulation.processes.values():
            state = process.replica.map
            stray = state.keyspace.attachments.leases() - state.leases.table.keys()
            if stray:
                broken("leases last", f"{process.node_id} has keys of leases {sorted(stray)} that are not there")
