"""What every state machine must do, as tests: subclass ``MachineSuite`` to hold your own machine to them.

::

    class TestMyMachine(MachineSuite):
        def make_machine(self):
            return MyMachine()

        def commands(self):
            return [b"deposit 5", b"withdraw 7", b"nonsense"]

They find what makes replicas differ, in a second rather than in production: a result that depends on more than the
commands, a snapshot that moves under later commands, a restore that stops half-way. What they cannot find is what your
commands do not reach: give many, and those that your machine refuses as well.
"""

# ruff: noqa: SIM300 - assertions read expected == actual

from __future__ import annotations

import abc
import hashlib
import importlib.util
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final

import pytest

from replikv.machine.base import StateMachine

__all__ = ["MachineSuite"]

_FINGERPRINT: Final = "from replikv.testing.machine_suite import print_fingerprint; print_fingerprint()"
_HASH_SEEDS: Final = ("1", "2")
_REPEATS: Final = 3
"""Each step is measured so often, and the fastest counts: a busy machine must not fail a test."""

Answer = tuple[str, bytes]
"""What a command was answered: the name of the exception, or nothing; and the result."""


class Interrupted(Exception):  # noqa: N818  # it is no error of anybody
    """The source of a snapshot failed."""


class MachineSuite(abc.ABC):
    """The contract of :class:`~replikv.StateMachine`, for your own one to be held to."""

    step_s_max: ClassVar[float] = 0.01
    """How long a command, or a chunk of a snapshot, may take: the process does nothing else meanwhile."""
    chunk_bytes_max: ClassVar[int] = 1024 * 1024
    """How large a chunk may be. 64 KiB is a good size."""

    @abc.abstractmethod
    def make_machine(self) -> StateMachine:
        """A new machine, as each peer makes one."""

    @abc.abstractmethod
    def commands(self) -> Sequence[bytes]:
        """Commands that reach all of it, also those that it refuses; the same at each call, some hundred at most."""

    def make_former_machine(self) -> StateMachine | None:
        """The machine of the version before, if there was one: a new one must not differ until it is activated."""
        return None

    # -- determinism ---------------------------------------------------------------------------------------------------

    def test_equal_commands_make_equal_machines(self) -> None:
        """Results, exceptions and snapshots are functions of the commands."""
        one, other = self.make_machine(), self.make_machine()
        for position, command in enumerate(self.commands(), 1):
            assert answer(one, position, command) == answer(other, position, command), f"command {position} differs"
        assert content(one) == content(other)

    def test_another_process_comes_to_the_same(self) -> None:
        """One whose hashes of str are others: the order of a set must not show in a result or in a snapshot."""
        if "<locals>" in type(self).__qualname__:
            pytest.skip("the suite's class stands in a function: another process cannot import it")
        found = {seed: fingerprint_elsewhere(type(self), seed) for seed in _HASH_SEEDS}
        assert {fingerprint(self)} == set(found.values()), "what is applied depends on the process"

    def test_results_are_bytes(self) -> None:
        """Anything else is answered as a failure."""
        machine = self.make_machine()
        for position, command in enumerate(self.commands(), 1):
            _, result = answer(machine, position, command)
            assert bytes is type(result), f"the result of command {position}"

    def test_a_command_that_raises_changes_nothing(self) -> None:
        """The caller is told, and the machine is as before."""
        machine = self.make_machine()
        before = content(machine)
        for position, command in enumerate(self.commands(), 1):
            error, _ = answer(machine, position, command)
            after = content(machine)
            assert not error or before == after, f"command {position} raised {error}, and changed something"
            before = after

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def test_a_snapshot_is_pinned_when_it_is_taken(self) -> None:
        """The chunks stay what they were, though more commands are applied before they are read, and between them."""
        commands = self.commands()
        for taken_at in places(len(commands)):
            machine, still = self.make_machine(), self.make_machine()
            run(machine, commands[:taken_at])
            run(still, commands[:taken_at])
            chunks = machine.snapshot()
            read: list[bytes] = []
            for position, command in enumerate(commands[taken_at:], taken_at + 1):
                answer(machine, position, command)
                read += [chunk for chunk in [next(chunks, b"")] if position % 3 == 0 or chunk]
            read += chunks
            assert content(still) == b"".join(read), f"the snapshot after {taken_at} commands has moved"

    def test_a_snapshot_changes_nothing(self) -> None:
        """Nor does one that is read in part and dropped."""
        machine, still = self.make_machine(), self.make_machine()
        for position, command in enumerate(self.commands(), 1):
            next(machine.snapshot(), None)
            assert answer(still, position, command) == answer(machine, position, command)
        assert content(still) == content(machine)

    def test_a_restored_machine_is_equal(self) -> None:
        """It has the same snapshot and the same digest, and answers all that follows as the first one does."""
        commands = self.commands()
        for taken_at in places(len(commands)):
            machine, restored = self.make_machine(), self.make_machine()
            run(machine, commands[:taken_at])
            restored.restore(machine.snapshot())
            assert content(machine) == content(restored)
            assert machine.digest() == restored.digest()
            for position, command in enumerate(commands[taken_at:], taken_at + 1):
                expected = answer(machine, position, command)
                assert expected == answer(restored, position, command), f"command {position}, restored at {taken_at}"
            assert content(machine) == content(restored)
            assert machine.digest() == restored.digest()

    def test_restore_takes_any_chunks(self) -> None:
        """The bytes are those of the snapshot; where they are cut is not, down to a byte at a time."""
        machine = self.make_machine()
        run(machine, self.commands())
        data = content(machine)
        for size in (1, 7, 64 * 1024, len(data) + 1):
            restored = self.make_machine()
            restored.restore(data[start : start + size] for start in range(0, len(data), size))
            assert data == content(restored), f"restored from chunks of {size} bytes"

    def test_restore_replaces_everything(self) -> None:
        """Whatever the machine held before."""
        commands = self.commands()
        for taken_at in places(len(commands)):
            source, target = self.make_machine(), self.make_machine()
            run(source, commands[:taken_at])
            run(target, commands)
            target.restore(source.snapshot())
            assert content(source) == content(target), f"restored at {taken_at}"
            assert source.digest() == target.digest()

    def test_a_restore_that_fails_changes_nothing(self) -> None:
        """Wherever the chunks end in an error, it goes on to the caller, and the machine is as it was."""
        commands = self.commands()
        source = self.make_machine()
        run(source, commands)
        data = content(source)
        pieces = [data[start : start + 1 + len(data) // 10] for start in range(0, len(data), 1 + len(data) // 10)]
        for whole in range(len(pieces) + 1):
            target, still = self.make_machine(), self.make_machine()
            run(target, commands[: len(commands) // 2])
            run(still, commands[: len(commands) // 2])
            with pytest.raises(Interrupted):
                target.restore(interrupted(pieces[:whole]))
            assert content(still) == content(target), f"{whole} of {len(pieces)} pieces were read"
            assert still.digest() == target.digest()
            for position, command in enumerate(commands, len(commands) + 1):
                assert answer(still, position, command) == answer(target, position, command)

    # -- time and size -------------------------------------------------------------------------------------------------

    def test_no_step_takes_long(self) -> None:
        """Each command and each chunk, at the fastest of some tries."""
        commands = self.commands()
        applied: list[list[float]] = []
        made: list[list[float]] = []
        for _ in range(_REPEATS):
            machine = self.make_machine()
            applied.append([seconds(machine, position, command) for position, command in enumerate(commands, 1)])
            made.append(list(chunk_seconds(machine.snapshot)))
        for what, measured in (("command", applied), ("chunk", made)):
            fastest = [min(tries) for tries in zip(*measured, strict=True)]
            slow = {number: taken for number, taken in enumerate(fastest, 1) if taken > self.step_s_max}
            assert {} == slow, f"more than {self.step_s_max} s for each {what} of these"

    def test_chunks_are_small(self) -> None:
        """They are bytes, and hold the loop and the memory for a moment only."""
        machine = self.make_machine()
        run(machine, self.commands())
        for number, chunk in enumerate(machine.snapshot(), 1):
            assert bytes is type(chunk)
            assert self.chunk_bytes_max >= len(chunk), f"chunk {number} has {len(chunk)} bytes"

    # -- versions ------------------------------------------------------------------------------------------------------

    def test_a_machine_that_was_told_nothing_keeps_to_version_1(self) -> None:
        """Others in the cluster may know no more."""
        told, untold = self.make_machine(), self.make_machine()
        told.activate(1)
        for position, command in enumerate(self.commands(), 1):
            assert answer(told, position, command) == answer(untold, position, command)
        assert content(told) == content(untold)

    def test_every_version_is_the_same_on_every_machine(self) -> None:
        """Activated between two commands, or before a restore: what follows does not tell."""
        commands = self.commands()
        middle = len(commands) // 2
        for version in range(1, self.make_machine().version + 1):
            one, restored = self.make_machine(), self.make_machine()
            run(one, commands[:middle])
            one.activate(version)
            restored.activate(version)
            restored.restore(one.snapshot())
            for position, command in enumerate(commands, middle + 1):
                assert answer(one, position, command) == answer(restored, position, command), f"version {version}"
            assert content(one) == content(restored)
            assert one.digest() == restored.digest()

    def test_a_new_version_waits_for_its_activation(self) -> None:
        """Until then it answers, and holds, what the former machine does."""
        former, machine = self.make_former_machine(), self.make_machine()
        if former is None:
            pytest.skip("there is no make_former_machine")
        assert machine.version > former.version, "raise the version of the new machine"
        for one in (former, machine):
            one.activate(former.version)
        for position, command in enumerate(self.commands(), 1):
            assert answer(former, position, command) == answer(machine, position, command), f"command {position}"
        assert content(former) == content(machine)
        machine.activate(machine.version)
        machine.restore(former.snapshot())


# -- driving a machine -------------------------------------------------------------------------------------------------


def answer(machine: StateMachine, position: int, command: bytes) -> Answer:
    """What the command is answered, on every replica."""
    try:
        return "", machine.apply(position, command)
    except MemoryError:
        raise
    except Exception as exc:
        return type(exc).__qualname__, b""


def run(machine: StateMachine, commands: Sequence[bytes]) -> None:
    """Apply them all, from position 1 on."""
    for position, command in enumerate(commands, 1):
        answer(machine, position, command)


def content(machine: StateMachine) -> bytes:
    """The whole state."""
    return b"".join(machine.snapshot())


def places(count: int) -> list[int]:
    """Where to look among so many commands: at both ends, and in between."""
    return sorted({0, 1, count // 3, count // 2, count - 1, count} & set(range(count + 1)))


def interrupted(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """These, and then an error."""
    yield from pieces
    raise Interrupted


def seconds(machine: StateMachine, position: int, command: bytes) -> float:
    """What one command takes."""
    began = time.perf_counter()
    answer(machine, position, command)
    return time.perf_counter() - began


def chunk_seconds(snapshot: object) -> Iterator[float]:
    """What the call takes, with the first chunk, and then each other one."""
    assert callable(snapshot)
    began = time.perf_counter()
    for _ in snapshot():
        yield time.perf_counter() - began
        began = time.perf_counter()
    yield time.perf_counter() - began


# -- in another process ------------------------------------------------------------------------------------------------


def fingerprint(suite: MachineSuite) -> str:
    """A digest of all answers, and of the state after each command."""
    machine = suite.make_machine()
    digest = hashlib.sha256()
    for position, command in enumerate(suite.commands(), 1):
        error, result = answer(machine, position, command)
        state = content(machine)
        for part in (command, error.encode(), result, state, machine.digest()):
            digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def fingerprint_elsewhere(suite: type[MachineSuite], hash_seed: str) -> str:
    """The same by another process."""
    done = subprocess.run(  # noqa: S603  # this interpreter, and a suite that runs in it already
        [sys.executable, "-c", _FINGERPRINT, inspect.getfile(suite), suite.__qualname__],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, f"another process could not run the machine:\n{done.stderr}"
    return done.stdout.split()[-1]


def print_fingerprint() -> None:
    """The program of that process: the file and the class of a suite are its arguments."""
    path, name = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("machine_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite: object = module
    for part in name.split("."):
        suite = getattr(suite, part)
    assert isinstance(suite, type)
    made = suite()
    assert isinstance(made, MachineSuite)
    sys.stdout.write(f"{fingerprint(made)}\n")
