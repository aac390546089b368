"""Every error of replikv, one tree, sorted by whose hand it is in.

::

    ReplikvError
    ├── the caller's
    │   ├── ConfigurationError (ValueError)        arguments or settings that contradict each other, or the disk
    │   ├── EncodingError (TypeError, ValueError)  a key or value that is not plain data, or not what the call needs
    │   │   ├── ValueTooLargeError                 plain data, but over a limit of the settings
    │   │   └── SchemaError                        a value that does not fit the class of a typed map
    │   ├── CompactedError (LookupError)           a revision below the retained history
    │   ├── LaggedError                            a watcher that did not keep up; goes on with ``since=``
    │   ├── LeaseExpiredError                      the lease or leadership a block rested on is gone
    │   └── ClusterClosedError (RuntimeError)      a cluster that is not open: not yet, or no longer
    ├── the cluster's state
    │   ├── UnavailableError (TimeoutError)        surely not applied
    │   ├── OutcomeUnknownError (TimeoutError)     may have been applied
    │   ├── NotLeaderError                         the call is the leader's alone
    │   ├── QuotaExceededError                     the state would grow over a limit that all replicas keep
    │   ├── RemovedError                           this peer is no longer a member
    │   └── UpgradeRequiredError                   the cluster uses commands that this replikv does not know
    ├── the environment's
    │   ├── StorageError (OSError)                 the disk refused or failed
    │   │   ├── CorruptionError                    bytes on the disk are not the bytes that were written
    │   │   └── DataDirInUseError                  another process has the directory
    │   ├── WrongClusterError                      the other side is not of this cluster, or does not know us as this
    │   └── AuthenticationError (OSError)          one side did not prove to the other that it belongs to the cluster
    └── InternalError (AssertionError)             our bug: an invariant of replikv does not hold
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "ClusterClosedError",
    "CompactedError",
    "ConfigurationError",
    "CorruptionError",
    "DataDirInUseError",
    "EncodingError",
    "InternalError",
    "LaggedError",
    "LeaseExpiredError",
    "NotLeaderError",
    "OutcomeUnknownError",
    "QuotaExceededError",
    "RemovedError",
    "ReplikvError",
    "SchemaError",
    "StorageError",
    "UnavailableError",
    "UpgradeRequiredError",
    "ValueTooLargeError",
    "WrongClusterError",
]


class ReplikvError(Exception):
    """The root: catches whatever replikv raises on purpose."""


# -- the caller's ------------------------------------------------------------------------------------------------------


class ConfigurationError(ReplikvError, ValueError):
    """Arguments or settings that contradict each other or what is on disk; the message names both sides."""


class EncodingError(ReplikvError, TypeError, ValueError):
    """A key or a value that cannot be stored, or is not of the type that the operation needs.

    Nothing was proposed, unless the operation depends on the stored value (``increment`` of a string):
    then it was refused by every replica alike.
    """


class ValueTooLargeError(EncodingError):
    """Plain data, but larger or deeper than a limit allows. Nothing was proposed."""


class SchemaError(EncodingError):
    """A value that does not fit the class of a typed map: one that was to be put, or one that is stored.

    ``key`` is the key, relative to the typed map; ``field`` says where in the value, as in ``"address.lines[2]"``, and
    is empty for the value as a whole. ``value`` is the object that was to be put, or the plain data that is stored.
    """

    def __init__(self, message: str, key: str, field: str, value: object) -> None:
        super().__init__(message, key, field, value)
        self.key = key
        self.field = field
        self.value = value

    def __str__(self) -> str:
        return str(self.args[0])


class CompactedError(ReplikvError, LookupError):
    """The revision asked for is below the retained history.

    ``revision`` is the history floor: the oldest revision that can still be read, and the smallest ``since=``.
    """

    def __init__(self, message: str, revision: int) -> None:
        super().__init__(message, revision)
        self.revision = revision

    def __str__(self) -> str:
        return str(self.args[0])


class LaggedError(ReplikvError):
    """A watcher fell further behind than its buffer holds.

    ``revision`` is the last revision that was delivered whole: ``watch(since=error.revision)`` goes on from there.
    """

    def __init__(self, message: str, revision: int) -> None:
        super().__init__(message, revision)
        self.revision = revision

    def __str__(self) -> str:
        return str(self.args[0])


class LeaseExpiredError(ReplikvError):
    """The lease or the leadership that a block rested on could not be kept; the block's body was cancelled."""


class ClusterClosedError(ReplikvError, RuntimeError):
    """The cluster is not open: it has not been entered yet, or has been left."""


# -- the cluster's state -----------------------------------------------------------------------------------------------


class UnavailableError(ReplikvError, TimeoutError):
    """The cluster could not take the request in time. It was surely not applied, and may be sent again."""


class OutcomeUnknownError(ReplikvError, TimeoutError):
    """The request was handed to the log, but no answer came in time: it may have been applied, or may yet be.

    ``token`` names the command for ever: ``(session, sequence)``. ``cluster.outcome(token)`` settles what became of it.
    """

    def __init__(self, message: str, token: tuple[int, int]) -> None:
        super().__init__(message, token)
        self.token = token

    def __str__(self) -> str:
        return str(self.args[0])


class NotLeaderError(ReplikvError):
    """The call is the leader's alone. ``leader`` is the node id to ask, or None while there is none."""

    def __init__(self, message: str, leader: str | None) -> None:
        super().__init__(message, leader)
        self.leader = leader

    def __str__(self) -> str:
        return str(self.args[0])


class QuotaExceededError(ReplikvError):
    """The state would grow over a limit that all replicas keep. Nothing was changed; deletes still work."""


class RemovedError(ReplikvError):
    """This peer was removed from the membership; it may join anew with an empty data directory."""


class UpgradeRequiredError(ReplikvError):
    """The cluster uses commands that this replikv, or this application's StateMachine, does not know.

    The peer stops before it applies one: start it with the version that the others run.
    """


# -- the environment's -------------------------------------------------------------------------------------------------


class StorageError(ReplikvError, OSError):
    """The disk refused or failed. After a failed sync this peer stops: what is in memory is no longer promised."""


class CorruptionError(StorageError):
    """Bytes on disk are not the bytes that were written: damage, no torn write. ``file`` and ``offset`` say where."""

    def __init__(self, message: str, file: str, offset: int) -> None:
        super().__init__(message, file, offset)
        self.file = file
        self.offset = offset

    def __str__(self) -> str:
        return str(self.args[0])


class DataDirInUseError(StorageError):
    """Another process (or another cluster of this process) has the data directory locked."""


class WrongClusterError(ReplikvError):
    """The other side belongs to another cluster, or knows this node id under another incarnation (a lost disk)."""


class AuthenticationError(ReplikvError, OSError):
    """One side did not prove to the other that it may: its secret or certificate is wrong or missing."""


# -- ours --------------------------------------------------------------------------------------------------------------


class InternalError(ReplikvError, AssertionError):
    """An invariant of replikv does not hold: a bug of ours. The peer stops rather than guess. Please report it.

    A replica that has diverged from the others is one, too, though a StateMachine or damaged memory may be why.
    """
