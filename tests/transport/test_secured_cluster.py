"""Whole clusters with a secret and with TLS, over real sockets: growing, snapshots, and those that may not come in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from certificates import OTHER_AUTHORITY, contexts

from replikv import AuthenticationError, Cluster, Settings, TcpTransport
from replikv.demo.ports import HOST, free_ports

SECRET, OTHER = "the secret of this cluster, and of no other", "the secret of another cluster"
QUICK = Settings(
    heartbeat_interval_s=0.05,
    election_timeout_s=0.5,
    reconnect_delay_s=0.01,
    reconnect_delay_max_s=0.1,
    connect_timeout_s=2.0,
    trailing_entries=1,
    snapshot_log_entries=5,
)


def credentials(kind: str, node_id: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if kind in ("secret", "both"):
        given["secret"] = SECRET
    if kind in ("TLS", "both"):
        given.update(tls=contexts(node_id), tls_names=True)
    return given


def free_addresses(count: int) -> list[str]:
    return [f"{HOST}:{port}" for port in free_ports(count)]


@contextlib.asynccontextmanager
async def three(kind: str) -> AsyncIterator[list[Cluster]]:
    """Three members with credentials of this kind."""
    members = dict(zip("abc", free_addresses(3), strict=True))
    with trio.fail_after(30):
        async with contextlib.AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    Cluster(
                        node_id,
                        members=members,
                        transport=TcpTransport(**credentials(kind, node_id)),
                        settings=QUICK,
                    )
                )
                for node_id in members
            ]


def joining(member: Cluster, **given: Any) -> Cluster:
    address = member.status().members[member.status().node_id].address
    return Cluster("d", address=free_addresses(1)[0], join=[address], transport=TcpTransport(**given), settings=QUICK)


@pytest.mark.parametrize("kind", ["secret", "both"])
async def test_a_cluster_that_authenticates(kind: str) -> None:
    """It elects, commits from any peer, takes a newcomer in by a snapshot, and the newcomer is heard."""
    async with three(kind) as peers:
        for number, peer in enumerate(peers):
            await peer.store.put(f"key/{number}", "x" * 10_000)
        await peers[0].snapshot()
        async with joining(peers[1], **credentials(kind, "d")) as newcomer:
            assert 3 == len(newcomer.store)
            await newcomer.store.put("from", "d")
            assert "d" == await peers[2].store.get("from")
            while newcomer.doctor():  # noqa: ASYNC110 # it tells nobody
                await trio.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "strangers"),
    [
        ("secret", [{"secret": OTHER}, {}]),
        ("none", [{"secret": SECRET}]),
        ("TLS", [{"tls": contexts("d", authority=OTHER_AUTHORITY)}, {"tls": contexts("d"), "secret": SECRET}, {}]),
    ],
    ids=["secret", "none", "TLS"],
)
async def test_who_may_not_join_is_told_so(kind: str, strangers: list[dict[str, Any]]) -> None:
    """A newcomer with the wrong credentials ends at once with AuthenticationError; the cluster goes on as before."""
    async with three(kind) as peers:
        await peers[0].store.put("key", 1)
        for given in strangers:
            with pytest.raises(AuthenticationError, match=r"no call to .*(secret|authenticates|certificate|TLS)"):
                async with joining(peers[0], **given):
                    pass
        await peers[1].store.put("key", 2)
        assert {"a", "b", "c"} == peers[0].status().members.keys()


async def test_who_joins_by_several_asks_them_all() -> None:
    """One address of another cluster does not keep it out."""
    async with three("secret") as peers, Cluster(
        "z", address=free_addresses(1)[0], transport=TcpTransport(secret=OTHER), settings=QUICK
    ) as other:  # fmt: skip
        await other.wait_leader()
        addresses = [cluster.status().members[cluster.status().node_id].address for cluster in (other, peers[0])]
        async with Cluster(
            "d", address=free_addresses(1)[0], join=addresses, transport=TcpTransport(secret=SECRET), settings=QUICK
        ) as newcomer:
            assert {"a", "b", "c", "d"} == newcomer.status().members.keys()


async def test_a_member_with_the_wrong_secret_is_named() -> None:
    """It is left out, the others go on without it, and both sides' doctors know."""
    members = dict(zip("abc", free_addresses(3), strict=True))
    with trio.fail_after(30):
        async with contextlib.AsyncExitStack() as stack:
            peers = [
                await stack.enter_async_context(
                    Cluster(node_id, members=members, transport=TcpTransport(secret=secret), settings=QUICK)
                )
                for node_id, secret in (("a", SECRET), ("b", SECRET), ("c", OTHER))
            ]
            await peers[0].store.put("key", 1)
            for peer, sentence in ((peers[0], "a and c do not know the same secret"), (peers[2], "c and a do not")):
                while not any(sentence in line for line in peer.doctor()):  # noqa: ASYNC110 # it tells nobody
                    await trio.sleep(0.02)
            assert "key" not in peers[2].store
