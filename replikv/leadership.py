"""Leadership among the processes of an application: named, fair, fenced. ``cluster.leading()``; rests on the map alone.

Who wants to lead is a contender (store/contenders.py): a key of his own under the name, with a lease, whose
create_revision is his place in the line, and later his token. So at no time do two lead that are not both stopped, or
have stopped (docs/leadership.md has who was stopped with SIGSTOP), and tokens only grow. A candidate who loses his
place is a candidate again, in the last place; a leader who loses his is told.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Final

import structlog

from replikv.errors import ConfigurationError, LeaseExpiredError, OutcomeUnknownError, UnavailableError
from replikv.store.contenders import Contenders
from replikv.store.leases import Lease
from replikv.store.store import Store
from replikv.store.txn import Compare

__all__ = ["PREFIX", "Leadership", "lead"]

PREFIX: Final = "_replikv/leading/"
"""Keys are PREFIX, the name (% and / escaped as in a URL), a slash, and the lease in 16 hexadecimal digits."""

_log = structlog.get_logger(component="leadership")


@dataclasses.dataclass(frozen=True, slots=True)
class Leadership:
    """A named leadership that this process holds, inside the block that ``cluster.leading()`` opens."""

    name: str
    token: int
    """The fencing token: larger than that of everybody who led under this name before. Have whatever you write to
    refuse a smaller one than it has seen; in the map, make it a condition that ``key`` has this create_revision."""
    key: str
    """The key in ``cluster.store`` that is there as long as this process leads. Its value is the node id."""
    lease: Lease
    """The lease it rests on: keys that are put with it vanish when somebody else may lead."""

    @property
    def fence(self) -> Compare:
        """True as long as this process leads: for ``store.txn([leadership.fence], [...])`` on ``cluster.store``."""
        return Compare.create_revision(self.key, "==", self.token)

    @property
    def remaining_s(self) -> float:
        """For how long this process may rely on it, if nothing more is heard; 0 when it is over."""
        return self.lease.remaining_s


def candidates(name: str) -> str:
    """The prefix of the keys of all who lead, or want to, under a name."""
    if type(name) is not str or not name:
        raise ConfigurationError(f"a leadership has a name, a str that is not empty; not {name!r:.100}")
    return PREFIX + name.replace("%", "%25").replace("/", "%2F") + "/"


@contextlib.asynccontextmanager
async def lead(store: Store, name: str, node_id: str, ttl_s: float) -> AsyncGenerator[Leadership]:
    """As :meth:`Cluster.leading`, on the whole map."""
    contenders = Contenders(store, candidates(name), ttl_s)
    leads = False
    body_error: BaseException | None = None
    while True:
        try:
            async with contenders.join(node_id) as claim:
                await contenders.wait_turn(claim)
                leads = True
                try:
                    yield Leadership(name, claim.token, claim.key, claim.lease)
                except BaseException as exc:
                    body_error = exc
                    raise
        except (LeaseExpiredError, UnavailableError, OutcomeUnknownError) as exc:
            if leads:
                if exc is body_error or not isinstance(exc, LeaseExpiredError):
                    raise
                raise LeaseExpiredError(f"the leadership {name!r} was lost: {exc}") from None
            _log.info("candidate again", name=name, node=node_id, reason=str(exc))
            continue
        return
