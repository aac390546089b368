"""Programs that readers are shown, run as readers run them: a file, given to Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from replikv.demo.ports import HOST, free_ports

TIME_MAX_S = 60.0
"""They take up to 6 s; this is for a machine that is busy with other things."""

ADDRESS = re.compile(rf"\b{re.escape(HOST)}:\d+")


def with_free_ports(program: str) -> str:
    """The program with other ports than those that a reader is shown: on this machine, somebody may have them."""
    addresses = sorted(set(ADDRESS.findall(program)))
    free = dict(zip(addresses, (f"{HOST}:{port}" for port in free_ports(len(addresses))), strict=True))
    return ADDRESS.sub(lambda found: free[found[0]], program)


def run_program(program: str, directory: Path) -> str:
    """What the program prints. It must end with exit code 0, say nothing on standard error, and leave no file."""
    file = directory / "program.py"
    file.write_text(with_free_ports(program), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        cwd=directory,
        env={**os.environ, "TMPDIR": str(directory)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_MAX_S,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    assert [file] == list(directory.iterdir())
    return done.stdout
