"""What a planted bug is, and how it is put into the code for a while and looked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from replikv.testing.simulator.options import FAULT_GROUPS, Options
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.simulation import Report, run

__all__ = ["CALM", "CATALOGUE", "Bug", "bug", "find", "planted"]


@dataclasses.dataclass(frozen=True, slots=True)
class Bug:
    """An entry of the catalogue."""

    name: str
    what: str
    seeds: int
    """Within how many seeds, from 1 on, it is noticed."""
    options: dict[str, str]
    """What is set otherwise than the seeds have it."""
    plant: Callable[[Patch], None]


CATALOGUE: Final[dict[str, Bug]] = {}
"""Name -> bug."""

CALM: Final[dict[str, object]] = dict.fromkeys(sorted(set().union(*FAULT_GROUPS)), 0)
"""No faults at all: for bugs that need few of them, and a cluster that is well otherwise."""


def bug(
    options: dict[str, object] | None = None, /, *, seeds: int = 20, **others: object
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Enter a function in the catalogue, under its name with hyphens; its docstring says what is wrong."""

    def enter(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name = plant.__name__.replace("_", "-")
        described = {option: str(value) for option, value in {**(options or {}), **others}.items()}
        CATALOGUE[name] = Bug(name, (plant.__doc__ or "").strip(), seeds, described, plant)
        return plant

    return enter


@contextlib.contextmanager
def planted(name: str) -> Iterator[Bug]:
    """Have a bug in the code. Raises KeyError for one that is not in the catalogue."""
    found = CATALOGUE[name]
    with Patch() as patch:
        found.plant(patch)
        yield found


def find(name: str, seeds: Iterable[int] | None = None) -> Report | None:
    """The first run that notices the bug; None when none of the seeds does."""
    with planted(name) as found:
        for seed in seeds if seeds is not None else range(1, found.seeds + 1):
            report = run(Options.draw(seed).with_values(found.options))
            if report.failure is not None:
                return report
    return None
