"""What is left of an exception group when cancellations are not counted."""

from __future__ import annotations

import trio

__all__ = ["is_cancellation", "sole_error"]


def sole_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a group that is no cancellation; the group if there are several, a cancellation if none."""
    errors = leaves(group)
    failures = [error for error in errors if not isinstance(error, trio.Cancelled)]
    if len(failures) > 1:
        return group
    return failures[0] if failures else errors[0]


def is_cancellation(error: BaseException) -> bool:
    """Whether there is nothing but cancellations in it."""
    return all(isinstance(leaf, trio.Cancelled) for leaf in leaves(error))


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group, however deep."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in leaves(inner)]
