"""Checks of arguments that are neither keys nor values."""

from __future__ import annotations

from replikv.errors import ConfigurationError, EncodingError

__all__ = ["check_count", "check_text"]


def check_text(name: str, text: str) -> str:
    """A prefix or a bound of a range: any str, since none is stored. Raises EncodingError for anything else."""
    if type(text) is not str:
        raise EncodingError(f"{name} must be a str, not {type(text).__qualname__}: {text!r:.100}")
    return text


def check_count(name: str, count: int, least: int) -> int:
    """A number of things, or a revision. Raises ConfigurationError unless it is an int of at least ``least``."""
    if type(count) is not int or count < least:
        raise ConfigurationError(f"{name} must be an int of at least {least}, not {count!r}")
    return count
