"""The command ``replikv demo``, run as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TIME_MAX_S = 20.0
"""What the demo promises at the most."""

GONE_MAX_S = 8.0
"""What processes may take to notice that their parent is gone, and to end, on a busy machine."""

LOOK_S = 0.05


def start_demo(directory: Path) -> subprocess.Popen[str]:
    """The demo, with its temporary files in this directory: by that path its processes are known."""
    return subprocess.Popen(
        [sys.executable, "-m", "replikv", "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(directory), "NO_COLOR": "1"},
        text=True,
    )


def wait_until_told(demo: subprocess.Popen[str], words: str) -> None:
    """Read what it tells until these words are among it."""
    assert demo.stdout is not None
    assert any(words in line for line in demo.stdout)


def processes_of(directory: Path) -> list[int]:
    """The ids of processes that have the directory in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended just now
                continue
            if bytes(directory) in command:
                found.append(int(entry.name))
    return found


def leftovers(directory: Path) -> list[object]:
    """Processes and files of the demo, after the time that they have to vanish."""
    deadline = time.monotonic() + GONE_MAX_S
    while (left := [*processes_of(directory), *directory.iterdir()]) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return left


def test_the_demo_tells_its_story_and_leaves_nothing(tmp_path: Path) -> None:
    """It ends by itself, in time, with exit code 0; each step is told; no process and no file is left."""
    began = time.monotonic()
    with start_demo(tmp_path) as demo:
        output, errors = demo.communicate(timeout=2 * TIME_MAX_S)
        assert (0, "") == (demo.returncode, errors), output
    assert TIME_MAX_S > time.monotonic() - began
    assert [] == leftovers(tmp_path)
    for step in (
        "are up",
        "elected leader of term",
        "watches were told",
        "kill -9",
        "puts went on",
        "caught up",
        "equal",
    ):
        assert step in output
    assert 2 == output.count("elected leader"), "one at the start, one after the kill"
    digests = re.findall(r"sha256 ([0-9a-f]{64})", output)
    assert 3 == len(digests)
    assert 1 == len(set(digests))
    assert output.isascii(), "a terminal of any encoding shows it"
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=lambda value: str(value),
)
def test_a_demo_that_is_ended_leaves_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Its processes end and its files vanish, also when it is killed and cannot see to it."""
    with start_demo(tmp_path) as demo:
        wait_until_told(demo, "are up")
        assert 3 == len(processes_of(tmp_path))
        demo.send_signal(number)
        assert code == demo.wait(timeout=GONE_MAX_S)
        assert [] == leftovers(tmp_path)


def test_a_demo_whose_process_dies_fails_with_the_reason(tmp_path: Path) -> None:
    """What does not hold is no story: exit code 1, and one sentence about who ended when."""
    with start_demo(tmp_path) as demo:
        wait_until_told(demo, "are up")
        assert demo.stdout is not None
        told = re.search(r"pid (\d+)", demo.stdout.readline())
        assert told is not None
        os.kill(int(told[1]), signal.SIGKILL)
        _, errors = demo.communicate(timeout=TIME_MAX_S)
        assert 1 == demo.returncode
        assert re.fullmatch(r"replikv demo: failed: [abc] ended by itself: .* \(while .*\)\n", errors), errors
        assert [] == leftovers(tmp_path)


def test_a_demo_that_nobody_reads_any_more_fails_and_leaves_nothing(tmp_path: Path) -> None:
    """When its reader goes (a pipe to ``head``) it says so in one line, not in a traceback."""
    with start_demo(tmp_path) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        errors = demo.stderr.read()
        assert 1 == demo.wait(timeout=TIME_MAX_S)
        assert 1 == len(errors.splitlines()), errors
        assert "replikv demo: failed: " in errors
        assert [] == leftovers(tmp_path)
