"""The stories in ``scenarios/``: each comes out as it is written. ``REPLIKV_REWRITE=1`` writes down how it does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stories import told

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_a_story_comes_out_as_written(path: Path) -> None:
    """The same commands have the same outcome, line by line."""
    written = path.read_text()

    comes_out = told(written)

    if os.environ.get("REPLIKV_REWRITE"):
        path.write_text(comes_out)
    else:
        assert written == comes_out


def test_a_story_that_comes_out_otherwise_is_noticed() -> None:
    """The outcome is compared, and not only played."""
    assert told("> cluster 1\nnothing\n") == told("> cluster 1\nsomething else\n")
    assert "1 is leader in term 1" in told("> cluster 1\n\n> campaign 1\n")


def test_a_story_needs_empty_lines() -> None:
    """Else a command would be taken for an outcome, and never be done."""
    with pytest.raises(ValueError, match="an empty line is missing"):
        told("> cluster 1\n> campaign 1\n")
