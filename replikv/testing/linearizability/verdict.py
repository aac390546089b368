"""What the checker has to say."""

from __future__ import annotations

import dataclasses
from typing import Literal

from replikv.testing.linearizability.history import Operation

__all__ = ["Verdict"]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """ok: there is an order that explains everything. violation: there is none. unknown: time ran out.

    ``assert verdict.outcome == "ok", verdict`` shows the explanation.
    """

    outcome: Literal["ok", "violation", "unknown"]
    explanation: str
    """For people; several lines for a violation."""
    keys: tuple[str, ...] = ()
    """The keys that the violation is about, or whose operations were not decided."""
    placed: tuple[Operation, ...] = ()
    """Of a violation: the longest possible beginning of an order, with the unknown operations that it needs."""
    stuck: tuple[Operation, ...] = ()
    """Of a violation: the operations that can come next by their times, and fit none of them."""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.explanation}"
