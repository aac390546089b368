"""Numbers that recipes are given: the message says what they have to be to who has given something else."""

from __future__ import annotations

import math

from replikv import ConfigurationError

__all__ = ["check_count", "check_seconds"]


def check_seconds(name: str, seconds: object, *, or_zero: bool = False) -> None:
    """Raise ConfigurationError unless it is a time, and not 0 unless that is one, too."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ConfigurationError(f"{name} must be a number of seconds, not {seconds!r:.100}")
    if seconds < 0 or (seconds == 0 and not or_zero):
        raise ConfigurationError(f"{name} must be {'at least' if or_zero else 'greater than'} 0, not {seconds!r}")


def check_count(name: str, count: object) -> None:
    """Raise ConfigurationError unless it is a number of things, 1 at least."""
    if type(count) is not int or count < 1:
        raise ConfigurationError(f"{name} must be at least 1, an int, not {count!r:.100}")
