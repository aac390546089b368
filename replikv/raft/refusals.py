"""Why the core did not take a proposal.

::

    ProposalDroppedError
    ├── ChangePendingError   another membership change has to be applied first
    └── InvalidChangeError   the membership change makes no sense for the configuration in force

They never reach a user as they are: the runtime tries again, elsewhere or later, or tells why in its own words.
"""

from __future__ import annotations

__all__ = ["ChangePendingError", "InvalidChangeError", "ProposalDroppedError"]


class ProposalDroppedError(Exception):
    """The core did not take the proposal, and never will: the caller may try elsewhere, or later."""


class ChangePendingError(ProposalDroppedError):
    """At most one membership change is under way: try again once ``index`` is applied (thesis 4.1)."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class InvalidChangeError(ProposalDroppedError):
    """The change cannot be applied to the configuration in force. The same change may be valid for another."""
