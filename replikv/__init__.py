"""replikv: a replicated map inside your own processes.

An application embeds a :class:`Cluster` in a trio nursery and gets a dict-like map that is the same on every peer,
survives the loss of a minority of them, and calls back when a key changes.
"""

from replikv.cluster import Cluster
from replikv.errors import (
    AuthenticationError,
    ClusterClosedError,
    CompactedError,
    ConfigurationError,
    CorruptionError,
    DataDirInUseError,
    EncodingError,
    InternalError,
    LaggedError,
    LeaseExpiredError,
    NotLeaderError,
    OutcomeUnknownError,
    QuotaExceededError,
    RemovedError,
    ReplikvError,
    SchemaError,
    StorageError,
    UnavailableError,
    UpgradeRequiredError,
    ValueTooLargeError,
    WrongClusterError,
)
from replikv.leadership import Leadership
from replikv.machine.base import StateMachine
from replikv.peer.outcomes import Outcome
from replikv.peer.status import Member, Progress, Status
from replikv.settings import Settings
from replikv.storage.backups import Backup
from replikv.store.change import Change
from replikv.store.contenders import Claim, Contenders
from replikv.store.entry import ABSENT, Entry
from replikv.store.leases import Lease, LeaseStatus
from replikv.store.store import Store
from replikv.store.subscriptions import Subscription
from replikv.store.transactions import Transaction
from replikv.store.txn import Compare, Delete, DeleteRange, Get, GetRange, Operation, Put, Txn, TxnResult
from replikv.store.typed import TypedChange, TypedEntry, TypedStore
from replikv.store.watch import Watch
from replikv.transport.base import Channel, Hello, Receiver, Transport
from replikv.transport.memory import MemoryNetwork, MemoryTransport
from replikv.transport.tcp import TcpTransport
from replikv.version import __version__ as __version__

__all__ = [
    "ABSENT",
    "AuthenticationError",
    "Backup",
    "Change",
    "Channel",
    "Claim",
    "Cluster",
    "ClusterClosedError",
    "CompactedError",
    "Compare",
    "ConfigurationError",
    "Contenders",
    "CorruptionError",
    "DataDirInUseError",
    "Delete",
    "DeleteRange",
    "EncodingError",
    "Entry",
    "Get",
    "GetRange",
    "Hello",
    "InternalError",
    "LaggedError",
    "Leadership",
    "Lease",
    "LeaseExpiredError",
    "LeaseStatus",
    "Member",
    "MemoryNetwork",
    "MemoryTransport",
    "NotLeaderError",
    "Operation",
    "Outcome",
    "OutcomeUnknownError",
    "Progress",
    "Put",
    "QuotaExceededError",
    "Receiver",
    "RemovedError",
    "ReplikvError",
    "SchemaError",
    "Settings",
    "StateMachine",
    "Status",
    "StorageError",
    "Store",
    "Subscription",
    "TcpTransport",
    "Transaction",
    "Transport",
    "Txn",
    "TxnResult",
    "TypedChange",
    "TypedEntry",
    "TypedStore",
    "UnavailableError",
    "UpgradeRequiredError",
    "ValueTooLargeError",
    "Watch",
    "WrongClusterError",
]
