"""Our own transports against the public suite: TCP over real loopback sockets, and memory."""

from __future__ import annotations

import socket

import pytest
from certificates import contexts, single_context

from replikv.testing.transport_suite import TransportSuite
from replikv.transport.base import Transport
from replikv.transport.memory import MemoryNetwork, MemoryTransport
from replikv.transport.tcp import TcpTransport


class TestTcpTransport(TransportSuite):
    def make_transport(self, node_id: str) -> Transport:
        return TcpTransport()


class TestMemoryTransport(TransportSuite):
    def setup_method(self) -> None:
        self.network = MemoryNetwork()
        self._addresses = 0

    def make_transport(self, node_id: str) -> Transport:
        return MemoryTransport(self.network)

    def listen_address(self, node_id: str) -> str:
        self._addresses += 1
        return f"{node_id}:{self._addresses}"


def ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not ipv6_loopback(), reason="this machine has no IPv6")
class TestTcpTransportOverIPv6(TransportSuite):
    def make_transport(self, node_id: str) -> Transport:
        return TcpTransport()

    def listen_address(self, node_id: str) -> str:
        return "[::1]:0"


class TestTcpTransportWithSecret(TransportSuite):
    def make_transport(self, node_id: str) -> Transport:
        return TcpTransport(secret=["a secret for this test only", "another one, on its way out"])


class TestTcpTransportWithTls(TransportSuite):
    def make_transport(self, node_id: str) -> Transport:
        return TcpTransport(tls=contexts(node_id))


class TestTcpTransportWithBoth(TransportSuite):
    def make_transport(self, node_id: str) -> Transport:
        return TcpTransport(secret=b"a secret for this test only", tls=single_context())
