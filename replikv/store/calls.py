"""What all awaited operations of the map share: keys and sizes are checked, commands proposed, refusals raised."""

from __future__ import annotations

from typing import Any, Final

from replikv.errors import EncodingError, ValueTooLargeError
from replikv.machine.commands import encode_key
from replikv.machine.envelope import CommandKind
from replikv.machine.values import encode_value
from replikv.store.refusal import refusal
from replikv.store.replicator import Replicator
from replikv.store.watch_hub import WatchHub
from replikv.store.watching import Watching

__all__ = ["MAP", "Calls"]

MAP: Final = int(CommandKind.MAP)  # an IntEnum member costs an attribute look-up per command


class Calls(Watching):
    """The way from a payload to its result."""

    __slots__ = ("_key_bytes_max", "_propose", "_settings", "_value_bytes_max")

    def __init__(self, replicator: Replicator, hub: WatchHub, prefix: str = "") -> None:
        super().__init__(replicator, hub, prefix)
        self._settings = replicator.settings
        self._key_bytes_max = self._settings.key_bytes_max
        self._value_bytes_max = self._settings.value_bytes_max
        self._propose = replicator.propose

    def _key(self, key: str) -> bytes:
        if type(key) is not str:  # no subclass: it would come back as another type
            raise EncodingError(f"keys are str, not {type(key).__qualname__}: {key!r:.100}")
        return encode_key(self._prefix + key, self._key_bytes_max)

    def _value(self, key: str, value: Any) -> bytes:
        try:
            return encode_value(value, self._value_bytes_max)
        except EncodingError as exc:
            raise type(exc)(f"a value for {key!r:.100} cannot be stored: {exc}") from exc

    def _operations_max(self) -> int:
        """Changes in one command: what all replicas keep to, whatever this peer's settings say."""
        return self._replicator.replica.governance.limits.operations

    def _check_size(self, size: int) -> None:
        limit = self._settings.command_bytes_max
        if size > limit:
            raise ValueTooLargeError(f"the command takes more than {limit} bytes: split it, or raise command_bytes_max")

    async def _run(self, payload: bytes) -> bytes:
        result = await self._propose(MAP, payload)
        if result[0]:
            raise refusal(result)
        return result[1:]
