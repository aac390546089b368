"""Peers hash str differently: what commands answer, and what is in a snapshot, must not show it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, random, sys
from replikv.machine import commands
from replikv.machine.choices import Choice, Delete, Get, Put, encode_transact
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.governance import Limits, Versions, encode_set_limits, encode_upgrade
from replikv.machine.ranges import KeyRange
from replikv.machine.replica import Replica
from replikv.machine.values import encode_value

chance = random.Random(int(sys.argv[1]))
values = [encode_value(value, 99) for value in (1, "text", {"a": {1, 2}}, ["x"])]
replica, results = Replica(), hashlib.sha256()

def apply(kind, payload):
    result = replica.apply(Envelope(kind, 0, 0, 0, payload).encode())
    results.update(len(result).to_bytes(4) + result)

def key():
    return f"key/{chance.randrange(30)}"

apply(CommandKind.CLUSTER, encode_upgrade(Versions(1, 0)))
apply(CommandKind.CLUSTER, encode_set_limits(Limits(operations=8)))
for _ in range(1500):
    lease = chance.choice([0, *list(replica.map.leases.table)[-5:]])
    kind, value = chance.randrange(7), chance.choice(values)
    if kind == 0:
        payload = commands.encode_grant(1000)
    elif kind == 1:
        payload = commands.encode_revoke(lease or 99)  # of more keys than one command deletes, at times
    elif kind == 2:
        payload = commands.encode_delete_prefix(key()[:5].encode(), 3)
    elif kind == 3:
        payload = commands.encode_update({key().encode(): value for _ in range(8)}, lease)
    elif kind == 4:
        steps = [Put(key(), value, lease), Get(KeyRange(prefix="key/"), 3), Delete(KeyRange(key(), key()))]
        payload = encode_transact(Choice([], steps, []))
    elif kind == 5:
        payload = commands.encode_compact(max(0, replica.keyspace.revision - 20))
    else:
        payload = commands.encode_put(key().encode(), value, lease)
    apply(CommandKind.MAP, payload)
    if chance.random() < 0.02:
        other = Replica()
        other.restore(list(replica.snapshot()))
        replica = other
print(results.hexdigest(), replica.digest().hex(), replica.notes.get(replica.notes.newest), replica.keyspace.revision)
"""


@pytest.mark.parametrize("seed", range(3))
def test_replicas_of_processes_that_hash_differently_are_equal(seed: int) -> None:
    """Shards, sets of keys of a lease, dicts: the same commands give the same results, snapshot and digest."""
    told = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(seed)],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "77")
    }
    assert 1 == len(told)
    assert int(told.pop().split()[-1]) > 500
