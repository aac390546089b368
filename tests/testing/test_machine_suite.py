"""The suite for state machines: a sound machine passes all of it, and each flaw is found by the test that is for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from replikv import StateMachine
from replikv.testing.machine_suite import MachineSuite


class Ledger(StateMachine):
    """Accounts, and what is in them. Commands: ``name amount``; an account never goes below 0."""

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}

    def apply(self, position: int, command: bytes) -> bytes:
        name, amount = command.decode().split()
        balance = self.accounts.get(name, 0) + int(amount)
        if balance < 0:
            raise ValueError("not so much")
        self.accounts[name] = balance
        return b"%d" % balance

    def snapshot(self) -> Iterator[bytes]:
        lines = sorted(f"{name} {balance}\n" for name, balance in self.accounts.items())
        return (line.encode() for line in lines)

    def restore(self, chunks: Iterable[bytes]) -> None:
        lines = b"".join(chunks).decode().splitlines()
        self.accounts = {name: int(balance) for name, balance in (line.split() for line in lines)}

    def digest(self) -> bytes:
        return b"%d" % sum(self.accounts.values())


COMMANDS = [f"{name} {amount}".encode() for amount in (5, -3, 70, -1000) for name in ("ann", "bob", "cid", "dan")]


class LedgerSuite(MachineSuite):
    def make_machine(self) -> StateMachine:
        return Ledger()

    def commands(self) -> Sequence[bytes]:
        return [*COMMANDS, b"nonsense", b"ann 1"]


class TestLedger(LedgerSuite):
    """Sound, as far as anybody can tell."""


class TwoLedger(Ledger):
    """The next version: accounts can be closed."""

    version = 2

    def __init__(self) -> None:
        super().__init__()
        self.active = 1

    def activate(self, version: int) -> None:
        self.active = version

    def apply(self, position: int, command: bytes) -> bytes:
        if self.active >= 2 and command.startswith(b"close "):
            del self.accounts[command[6:].decode()]
            return b""
        return super().apply(position, command)


class TestTwoLedger(LedgerSuite):
    """Two versions, of which the former is the one above."""

    def make_machine(self) -> StateMachine:
        return TwoLedger()

    def make_former_machine(self) -> StateMachine:
        return Ledger()

    def commands(self) -> Sequence[bytes]:
        return [*super().commands(), b"close ann", b"close nobody", b"ann 1"]


# -- flaws -------------------------------------------------------------------------------------------------------------


class Timed(Ledger):
    def apply(self, position: int, command: bytes) -> bytes:
        return super().apply(position, command) + b" at %d" % time.perf_counter_ns()


class Hashed(Ledger):
    def snapshot(self) -> Iterator[bytes]:
        return (f"{name} {self.accounts[name]}\n".encode() for name in set(self.accounts))


class Wordy(Ledger):
    def apply(self, position: int, command: bytes) -> bytes:
        return super().apply(position, command).decode()  # type: ignore[return-value]  # that is the flaw


class Hasty(Ledger):
    def apply(self, position: int, command: bytes) -> bytes:
        name, amount = command.decode().split()
        self.accounts[name] = self.accounts.get(name, 0) + int(amount)
        if self.accounts[name] < 0:
            raise ValueError("not so much")
        return b"%d" % self.accounts[name]


class Unpinned(Ledger):
    def snapshot(self) -> Iterator[bytes]:
        yield from super().snapshot()


class Consuming(Ledger):
    def snapshot(self) -> Iterator[bytes]:
        chunks = list(super().snapshot())
        self.accounts.pop("ann", None)
        return iter(chunks)


class Forgetful(Ledger):
    """Keeps something that its snapshot has not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def apply(self, position: int, command: bytes) -> bytes:
        result = super().apply(position, command)
        self.count += 1
        return result + b" of %d" % self.count


class Undigested(Ledger):
    """Loses its digest with a restore."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = 0

    def apply(self, position: int, command: bytes) -> bytes:
        result = super().apply(position, command)
        self.sum += 1
        return result

    def digest(self) -> bytes:
        return b"%d" % self.sum


class LineByLine(Ledger):
    def restore(self, chunks: Iterable[bytes]) -> None:
        self.accounts = {name: int(balance) for name, balance in (chunk.decode().split() for chunk in chunks)}


class Merging(Ledger):
    def restore(self, chunks: Iterable[bytes]) -> None:
        before = self.accounts
        super().restore(chunks)
        self.accounts = before | self.accounts


class InPlace(Ledger):
    def restore(self, chunks: Iterable[bytes]) -> None:
        self.accounts = {}
        super().restore(chunks)


class Swallowing(Ledger):
    def restore(self, chunks: Iterable[bytes]) -> None:
        with contextlib.suppress(Exception):
            super().restore(chunks)


class Slow(Ledger):
    def apply(self, position: int, command: bytes) -> bytes:
        time.sleep(0.015)  # that is the flaw
        return super().apply(position, command)


class Lumpy(Ledger):
    def snapshot(self) -> Iterator[bytes]:
        return iter([b"".join(super().snapshot()) + b"\n" * 2_000_000])


class Eager(TwoLedger):
    """Does not wait to be told."""

    def __init__(self) -> None:
        super().__init__()
        self.active = 2


class Stamped(TwoLedger):
    """Tells of what it was told, but not in its snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.told = 0

    def activate(self, version: int) -> None:
        super().activate(version)
        self.told += 1

    def restore(self, chunks: Iterable[bytes]) -> None:
        super().restore(chunks)
        self.told = 0

    def apply(self, position: int, command: bytes) -> bytes:
        return super().apply(position, command) + b"!" * self.told


def finds(suite: MachineSuite, test: str) -> bool:
    """Whether that test of the suite finds something."""
    try:
        getattr(suite, f"test_{test}")()
    except (AssertionError, ValueError, pytest.fail.Exception):
        return True
    return False


def suite_of(machine: Callable[[], StateMachine], former: StateMachine | None = None) -> MachineSuite:
    class Suite(TestTwoLedger):
        def make_machine(self) -> StateMachine:
            return machine()

        def make_former_machine(self) -> StateMachine | None:  # type: ignore[override]  # none for most
            return former

    return Suite()


@pytest.mark.parametrize(
    ("machine", "test"),
    [
        (Timed, "equal_commands_make_equal_machines"),
        (Wordy, "results_are_bytes"),
        (Hasty, "a_command_that_raises_changes_nothing"),
        (Unpinned, "a_snapshot_is_pinned_when_it_is_taken"),
        (Consuming, "a_snapshot_changes_nothing"),
        (Forgetful, "a_restored_machine_is_equal"),
        (Undigested, "a_restored_machine_is_equal"),
        (LineByLine, "restore_takes_any_chunks"),
        (Merging, "restore_replaces_everything"),
        (InPlace, "a_restore_that_fails_changes_nothing"),
        (Swallowing, "a_restore_that_fails_changes_nothing"),
        (Slow, "no_step_takes_long"),
        (Lumpy, "chunks_are_small"),
        (Eager, "a_machine_that_was_told_nothing_keeps_to_version_1"),
        (Stamped, "every_version_is_the_same_on_every_machine"),
    ],
)
def test_a_flaw_is_found(machine: type[Ledger], test: str) -> None:
    """By the test that is for it; the sound machine that it is made of passes that test."""
    assert finds(suite_of(machine), test)
    assert not finds(suite_of(Ledger), test)


class EagerTwo(TwoLedger):
    def activate(self, version: int) -> None:
        self.active = 2


def test_a_version_that_does_not_wait_is_found() -> None:
    """What the former machine refuses, the new one takes before it is activated."""
    test = "a_new_version_waits_for_its_activation"
    assert finds(suite_of(EagerTwo, Ledger()), test)
    assert not finds(suite_of(TwoLedger, Ledger()), test)


class HashedSuite(LedgerSuite):
    def make_machine(self) -> StateMachine:
        return Hashed()

    def commands(self) -> Sequence[bytes]:
        return [f"account-{number} 1".encode() for number in range(50)]


def test_the_order_of_a_set_is_found() -> None:
    """In one process it is the same for all machines, in the next one it is another."""
    assert finds(HashedSuite(), "another_process_comes_to_the_same")
    assert not finds(HashedSuite(), "equal_commands_make_equal_machines")
