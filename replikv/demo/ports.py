"""Free ports for peers that are started, killed and started again on the same ones."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

__all__ = ["HOST", "free_ports"]

HOST: Final = "127.0.0.1"

CANDIDATES: Final = range(20_000, 32_000)
"""Below the ports that systems draw for outgoing connections (Linux: 32768 up): while a peer is down, nobody's
connection takes its port, and dialing it cannot connect to itself."""


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on now. Whoever binds them soon has them."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(CANDIDATES, len(CANDIDATES)):
            if len(ports) == count:
                return ports
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                ports.append(port)
    raise OSError(f"no {count} free ports among {CANDIDATES.start} to {CANDIDATES.stop - 1} on {HOST}")
