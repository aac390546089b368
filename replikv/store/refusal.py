"""What every replica refused alike, as the error that its caller gets."""

from __future__ import annotations

from replikv.errors import EncodingError, LeaseExpiredError, QuotaExceededError, ReplikvError
from replikv.machine.envelope import Status

__all__ = ["refusal"]

_ERRORS: dict[int, type[ReplikvError]] = {
    Status.NO_LEASE: LeaseExpiredError,
    Status.OVER_LIMIT: QuotaExceededError,
}


def refusal(result: bytes) -> ReplikvError:
    """The error for a result that is not OK. It depends on what is stored, so it could not be seen before."""
    return _ERRORS.get(result[0], EncodingError)(result[1:].decode(errors="replace"))
