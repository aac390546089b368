"""What a secret and TLS cost: frames between two transports of one process, over loopback."""

from __future__ import annotations

import logging
import shutil
import ssl
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from replikv import Settings, TcpTransport
from replikv.testing.transport_fixture import RecordingReceiver

__all__ = ["measure_frames"]

KINDS: Final = ("plain", "secret", "TLS", "both")
SIZES: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
SECRET: Final = "a secret for a benchmark only"


def measure_frames(directory: Path, *, rounds: int, frames: int) -> str:
    """A table: processor time per frame, of both sides together, there and back one at a time, and many at a time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    kinds = KINDS if shutil.which("openssl") else KINDS[:2]
    tls = _contexts(directory) if len(kinds) > 2 else None
    lines = [f"{'bytes':>9} {'frames':>9}" + "".join(f"{kind:>20}" for kind in kinds)]
    for size in SIZES:
        count = max(20, min(frames, 50_000_000 // size))
        for words, one_by_one in (("in turn", True), ("at once", False)):
            taken: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(rounds):
                for kind in kinds:
                    given: dict[str, Any] = {}
                    if kind in ("secret", "both"):
                        given["secret"] = SECRET
                    if kind in ("TLS", "both"):
                        given["tls"] = tls
                    taken[kind].append(trio.run(_run, given, size, count, one_by_one))
            medians = {kind: statistics.median(values) for kind, values in taken.items()}
            cells = "".join(
                f"{medians[kind] * 1e6:>11.1f} us {medians[kind] / medians['plain']:>4.2f}x" for kind in kinds
            )
            lines.append(f"{size:>9} {words:>9}{cells}")
    return "\n".join(lines)


async def _run(credentials: dict[str, Any], size: int, count: int, one_by_one: bool) -> float:
    """Seconds of processor time per frame."""
    names = ("a", "b")
    transports = {name: TcpTransport(**credentials) for name in names}
    receivers = {name: RecordingReceiver(name) for name in names}
    frame, left, done = bytes(size), count, trio.Event()

    def answer(_node_id: str, received: bytes) -> None:
        transports["b"].send("a", received)

    def count_down(_node_id: str, _received: bytes) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()
        elif one_by_one:
            transports["a"].send("b", frame)

    receivers["a"].on_frame = count_down
    receivers["b"].on_frame = answer if one_by_one else count_down
    async with trio.open_nursery() as nursery:
        for name, other in (("a", "b"), ("b", "a")):

            async def run(task_status: trio.TaskStatus[str], name: str = name) -> None:
                await transports[name].run(
                    receivers[name], listen="127.0.0.1:0", settings=Settings(), task_status=task_status
                )

            address = await nursery.start(run)
            transports[other].set_peer(name, address)
        for name, other in (("a", "b"), ("b", "a")):
            await receivers[name].wait_event("connected", other)
        began = time.process_time()
        if one_by_one:
            transports["a"].send("b", frame)
        else:
            for _ in range(count):
                while not transports["a"].send("b", frame):
                    await trio.lowlevel.checkpoint()
        await done.wait()
        taken = time.process_time() - began
        nursery.cancel_scope.cancel()
    return taken / count


def _contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Both sides show, and trust, one certificate."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=benchmark", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    pair = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in pair:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate)
        context.load_cert_chain(certificate, key)
    return pair
