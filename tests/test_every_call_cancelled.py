"""Whatever awaits is cancelled at each of its checkpoints, and at each step that anybody takes meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from cancelled_calls import CASES, OTHERWHERE, public_names
from cancelling import Case, cancel_everywhere, scene


def test_no_call_is_forgotten() -> None:
    """What is tested is what there is."""
    tested = {name for case in CASES for name in case.covers}
    assert set() == tested & OTHERWHERE
    assert sorted(public_names()) == sorted(tested | OTHERWHERE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_cancelled_at_any_checkpoint(autojump_clock: trio.abc.Clock, tmp_path: Path, case: Case) -> None:
    """At each of its own, and at some step in between: the state is sound, and nothing is left."""
    async with scene(tmp_path) as made:
        attempts = await cancel_everywhere(made, case, own=True, stride=1)
        assert attempts > 1
        await cancel_everywhere(made, case, own=False, stride=16)


@pytest.mark.long
@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("delay_s", [0.0, 0.01])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_cancelled_at_any_step_of_the_cluster(
    autojump_clock: trio.abc.Clock, tmp_path: Path, case: Case, role: str, delay_s: float
) -> None:
    """At each step that any task of any peer takes."""
    async with scene(tmp_path, role=role, delay_s=delay_s) as made:
        await cancel_everywhere(made, case, own=True, stride=1)
        assert await cancel_everywhere(made, case, own=False, stride=1) > 5
