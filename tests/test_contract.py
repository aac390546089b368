"""What programs are written against: names, arguments and defaults of the public classes. Added to, and never changed.

The contract is written as classes without bodies, and read as such. ``...`` as a default stands for any, an annotation
for an attribute.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import replikv
from replikv import errors

CONTRACT = """
class Cluster:
    store: object
    is_leader: object

    def __init__(
        self, node_id=None, *, members=None, address=None, listen=None, join=(), learner=False, data_dir=None,
        transport=None, machine=None, settings=...
    ): ...
    async def __aenter__(self): ...
    async def __aexit__(self, kind, error, traceback): ...
    async def run(self): ...
    async def shutdown(self): ...
    def status(self): ...
    def doctor(self): ...
    async def wait_leader(self): ...
    async def add_member(self, node_id, address, learner=False): ...
    async def remove_member(self, node_id): ...
    async def promote(self, node_id): ...
    async def transfer_leadership(self, to=None): ...
    async def snapshot(self): ...
    async def backup(self, path): ...
    async def propose(self, command): ...
    async def outcome(self, token): ...
    def leading(self, name): ...

class Store:
    revision: object
    local: object

    def __getitem__(self, key): ...
    def __contains__(self, key): ...
    def __len__(self): ...
    def __iter__(self): ...
    def keys(self, prefix="", *, start=None, stop=None, reverse=False, limit=None): ...
    def items(self, prefix="", *, start=None, stop=None, reverse=False, limit=None): ...
    def values(self, prefix="", *, start=None, stop=None, reverse=False, limit=None): ...
    def entry(self, key): ...
    async def put(self, key, value, *, lease=None): ...
    async def delete(self, key): ...
    async def delete_prefix(self, prefix): ...
    async def update(self, mapping): ...
    async def pop(self, key, default=...): ...
    async def setdefault(self, key, value): ...
    async def increment(self, key, by=1): ...
    async def compare_and_set(self, key, expected, value): ...
    async def replace(self, key, value, *, revision): ...
    async def get(self, key, default=None, *, revision=None): ...
    async def barrier(self): ...
    async def compact(self, revision): ...
    async def txn(self, compares, then, otherwise=()): ...
    async def transact(self, fn, *args): ...
    def lease(self, ttl_s=...): ...
    async def grant_lease(self, ttl_s): ...
    async def keep_alive(self, lease): ...
    async def revoke_lease(self, lease): ...
    async def time_to_live(self, lease): ...
    async def attach(self, key, lease): ...
    async def detach(self, key): ...
    def scoped(self, prefix): ...
    def typed(self, prefix, record_class): ...
    def watch(self, prefix="", *, since=None, snapshot=False, buffer=1024): ...
    def subscribe(self, callback, *, prefix="", since=None, buffer=1024, on_error=None): ...

class Transaction:
    def __getitem__(self, key): ...
    def __contains__(self, key): ...
    def get(self, key, default=None): ...
    def keys(self, prefix="", *, start=None, stop=None, reverse=False, limit=None): ...
    def put(self, key, value): ...
    def delete(self, key): ...

class Lease:
    id: object
    ttl_s: object
    remaining_s: object

    async def revoke(self): ...

class StateMachine:
    def apply(self, position, command): ...
    def snapshot(self): ...
    def restore(self, chunks): ...

class Subscription:
    def cancel(self): ...

class Put:
    def __init__(self, key, value, lease=None): ...

class Delete:
    def __init__(self, key): ...

class Get:
    def __init__(self, key): ...

class DeleteRange:
    def __init__(self, prefix="", start=None, stop=None): ...

class GetRange:
    def __init__(self, prefix="", start=None, stop=None, limit=None): ...

class Txn:
    def __init__(self, compares, then, otherwise=()): ...

class TcpTransport:
    def __init__(self, *, secret=None, tls=None): ...
"""

FIELDS = {
    "Status": "node_id cluster_id role term leader commit_index applied_index first_index last_index members progress",
    "Member": "address role",
    "Entry": "key value create_revision mod_revision version lease",
    "Change": "key value previous revision kind",
    "Outcome": "applied result reason",
    "LeaseStatus": "id ttl_s remaining_s keys",
    "TxnResult": "succeeded revision results",
    "Leadership": "name token",
    "Settings": "cluster_name zone heartbeat_interval_s election_timeout_s request_timeout_s shutdown_timeout_s"
    " value_bytes_max history_revisions history_age_s voters_max state_bytes_max keys_max leases_max sessions_max"
    " operations_per_command_max watches_max",
}
"""Dataclass -> its first fields, in this order; of Settings, which takes keywords only, in any."""

BUILTINS: dict[str, tuple[type[BaseException], ...]] = {
    "ConfigurationError": (ValueError,),
    "EncodingError": (TypeError, ValueError),
    "ValueTooLargeError": (TypeError, ValueError),
    "CompactedError": (LookupError,),
    "ClusterClosedError": (RuntimeError,),
    "UnavailableError": (TimeoutError,),
    "OutcomeUnknownError": (TimeoutError,),
    "StorageError": (OSError,),
    "CorruptionError": (OSError,),
    "DataDirInUseError": (OSError,),
    "InternalError": (AssertionError,),
}
"""Error -> the builtins that it is, too."""

CONTRACTS: dict[str, Any] = {"__name__": __name__}
exec(CONTRACT, CONTRACTS)  # ours, and nothing but names
CLASSES: list[type] = [value for value in CONTRACTS.values() if isinstance(value, type)]


def methods(contract: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    return ((name, value) for name, value in vars(contract).items() if inspect.isfunction(value))


def breaches(promised: inspect.Signature, kept: inspect.Signature) -> list[str]:
    """What a call that was right by the promise may stumble over."""
    found = []
    positional = [p.name for p in kept.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    own = [p.name for p in promised.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if positional[: len(own)] != own:
        found.append(f"positional arguments are {positional}")
    for name, parameter in promised.parameters.items():
        actual = kept.parameters.get(name)
        if actual is None or actual.kind is not parameter.kind:
            found.append(f"{name} is missing, or is given otherwise")
        elif parameter.default is ...:
            if actual.default is inspect.Parameter.empty:
                found.append(f"{name} has no default")
        elif actual.default != parameter.default:
            found.append(f"{name} is {actual.default!r} by default")
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return found + [
        f"{name} has to be given"
        for name, parameter in kept.parameters.items()
        if name not in promised.parameters
        and parameter.default is inspect.Parameter.empty
        and parameter.kind not in optional
    ]


@pytest.mark.parametrize("contract", CLASSES, ids=lambda contract: contract.__name__)
def test_a_class_keeps_its_contract(contract: type) -> None:
    """Every method is there, takes what it is promised to take, and is awaited if and only if it is promised to be."""
    kept = getattr(replikv, contract.__name__)
    found = {}
    for name, promised in methods(contract):
        actual = getattr(kept, name)
        wrong = breaches(inspect.signature(promised), inspect.signature(actual))
        if inspect.iscoroutinefunction(promised) != inspect.iscoroutinefunction(actual):
            wrong.append("async, or not")
        if wrong:
            found[name] = wrong
    assert {} == found
    assert [] == [name for name in inspect.get_annotations(contract) if not hasattr(kept, name)]


@pytest.mark.parametrize("name", FIELDS)
def test_a_dataclass_has_its_fields(name: str) -> None:
    """In the order in which they are promised; what was added stands behind them."""
    fields = [field.name for field in dataclasses.fields(getattr(replikv, name))]
    promised = FIELDS[name].split()
    if name == "Settings":
        assert set(promised) <= set(fields)
    else:
        assert promised == fields[: len(promised)]


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_are_the_builtins_that_they_mean(name: str) -> None:
    """Whoever catches TimeoutError catches what has timed out; and the root catches all."""
    error = getattr(replikv, name)
    assert issubclass(error, replikv.ReplikvError)
    assert [] == [builtin for builtin in BUILTINS.get(name, ()) if not issubclass(error, builtin)]


def test_comparisons() -> None:
    """The five of etcd, of a key or of a range; and no operator but the four."""
    for target in ("value", "version", "create_revision", "mod_revision", "lease"):
        for operator in ("==", "!=", "<", ">"):
            getattr(replikv.Compare, target)("key", operator, 1)
            getattr(replikv.Compare, target)(None, operator, 1, prefix="keys/")
            getattr(replikv.Compare, target)(None, operator, 1, start="a", stop="b")
        with pytest.raises(replikv.ConfigurationError, match="one of ==, !=, <, >, not '>='"):
            getattr(replikv.Compare, target)("key", ">=", 1)
