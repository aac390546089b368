"""What the demo's parent and its processes say to each other: JSON, one object a line, over standard input and output.

Requests go down, ``{"id": 7, "do": "put", ...}``; answers come up, ``{"id": 7, "result": ...}`` or ``{"id": 7, "error":
"..."}``, and so does news, ``{"news": "change", ...}``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, TypeAlias

import trio

__all__ = ["Line", "encode_line", "read_lines"]

Line: TypeAlias = dict[str, Any]


def encode_line(line: Line) -> bytes:
    """The line as it goes through a pipe."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


async def read_lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[Line]:
    """The lines until the other side closes its end. What a killed process has written of a last one is dropped."""
    partial = b""
    async for data in stream:
        *lines, partial = (partial + data).split(b"\n")
        for line in lines:
            yield json.loads(line)
