"""How the demo speaks: lines with the time in front, for a person to read, on a terminal or not."""

from __future__ import annotations

import sys
from typing import Final

import trio

__all__ = ["Narrator", "duration"]

INDENT: Final = " " * 11
"""As wide as the time."""


class Narrator:
    """Writes to standard output. Times count from its making."""

    def __init__(self) -> None:
        self._began = trio.current_time()

    def title(self, text: str) -> None:
        """What it is all about."""
        self._write(text, "")

    def tell(self, text: str, *details: str) -> None:
        """Something that has happened just now."""
        elapsed_s = trio.current_time() - self._began
        self._write(f"{elapsed_s:6.2f} s   {text}", *(INDENT + detail for detail in details))

    def _write(self, *lines: str) -> None:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """Three digits of it, in the unit that suits."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
