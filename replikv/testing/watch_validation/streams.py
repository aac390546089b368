"""What a watcher was told, stream by stream: as objects, and as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, TextIO, TypeAlias, get_args

from replikv.errors import CompactedError, LaggedError
from replikv.store.change import Change

__all__ = ["EventKind", "StreamEvent", "StreamRecorder", "WatchStream", "read_streams", "write_streams"]

EventKind: TypeAlias = Literal["change", "progress", "compacted", "lagged", "end"]
"""What a line tells, besides ``begin``."""

_EVENTS: Final = frozenset(get_args(EventKind))
_CHANGES: Final = frozenset({"put", "delete", "expire"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One thing that a stream told."""

    event: EventKind
    rev: int = 0
    """Of a change: its revision. Of a mark of progress: up to where everything was told, inclusive. Of ``lagged``: the
    ``revision`` of the LaggedError, from which the next stream goes on. Of ``compacted``: where the history begins."""
    kind: str | None = None
    """Of a change: put, delete or expire."""
    key: str | None = None
    value: Any = None
    """Of a put. Plain JSON."""
    previous: Any = None
    """The value before, None if there was none, or if it was not asked for."""
    created: bool = False
    """Whether the put made the key."""

    def __post_init__(self) -> None:
        if self.event not in _EVENTS:
            raise ValueError(f"a stream has events {', '.join(sorted(_EVENTS))}, not {self.event!r}")
        if self.event == "change" and (self.kind not in _CHANGES or not isinstance(self.key, str)):
            raise ValueError(f"a change of kind {self.kind!r} to the key {self.key!r}")
        if isinstance(self.rev, bool) or not isinstance(self.rev, int):
            raise TypeError(f"rev is {self.rev!r:.100}")

    def __str__(self) -> str:
        if self.event != "change":
            return f"{self.event} at {self.rev}"
        value = f" {self.value!r:.60}" if self.kind == "put" else ""
        return f"{self.kind} {self.key!r}{value} at {self.rev}"


@dataclasses.dataclass(slots=True, kw_only=True)
class WatchStream:
    """One watch, from its first step to its last: what was asked for, and what was told."""

    watcher: str
    """Who watches. He may go on with another stream when one has ended."""
    stream: int = 1
    """Tells the streams of one watcher apart."""
    since: int = 0
    """What came after this revision is to be told: ``since=``, or else the revision of the replica (``store.revision``)
    when the block was entered. With ``snapshot``, the revision of the state."""
    key: str | None = None
    prefix: str = ""
    start: str | None = None
    stop: str | None = None
    kinds: tuple[str, ...] | None = None
    """None: all."""
    previous: bool = True
    snapshot: bool = False
    events: list[StreamEvent] = dataclasses.field(default_factory=list)

    def __contains__(self, key: str) -> bool:
        """Whether changes of this key are to be told."""
        if self.key is not None:
            return key == self.key
        return (
            key.startswith(self.prefix)
            and (self.start is None or key >= self.start)
            and (self.stop is None or key < self.stop)
        )

    @property
    def whole(self) -> bool:
        """Whether all changes of all keys are to be told."""
        everything = self.key is None and not self.prefix and self.start is None and self.stop is None
        return everything and self.kinds is None

    def __str__(self) -> str:
        return f"stream {self.stream} of {self.watcher}"


class StreamRecorder:
    """Writes down what one watcher is told, line by line as it comes: what a process that is killed had seen is there.

    Values have to be plain JSON. Each line is flushed.

    Args:
        watcher: its name.
        file: open for writing text.
        first: the number of its first stream; greater than those of an earlier process that wrote to the same file.
    """

    def __init__(self, watcher: str, file: TextIO, *, first: int = 1) -> None:
        self._watcher = watcher
        self._file = file
        self._stream = first - 1

    def begin(
        self,
        *,
        since: int,
        key: str | None = None,
        prefix: str = "",
        start: str | None = None,
        stop: str | None = None,
        kinds: Iterable[str] | None = None,
        previous: bool = True,
        snapshot: bool = False,
    ) -> None:
        """A watch was entered with these options; ``since`` as :class:`WatchStream` has it, read before any await."""
        self._stream += 1
        asked: dict[str, Any] = {"since": since, "key": key, "prefix": prefix, "start": start, "stop": stop}
        asked |= {"kinds": None if kinds is None else sorted(kinds), "previous": previous, "snapshot": snapshot}
        self._write("begin", asked)

    def change(self, change: Change) -> None:
        """The watch gave this."""
        if change.kind == "progress":
            self._write("progress", {"rev": change.revision})
            return
        told = {"kind": change.kind, "key": change.key, "value": change.value, "previous": change.previous}
        self._write("change", {**told, "rev": change.revision, "created": change.created})

    def end(self, error: BaseException | None = None) -> None:
        """The watch has ended, by an error or because its reader left it. A stream need have no end."""
        if isinstance(error, CompactedError | LaggedError):
            self._write("compacted" if isinstance(error, CompactedError) else "lagged", {"rev": error.revision})
        else:
            self._write("end", {})

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        line = {"watcher": self._watcher, "stream": self._stream, "event": event, **fields}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()


# -- JSON lines --------------------------------------------------------------------------------------------------------


def write_streams(streams: Iterable[WatchStream], target: str | os.PathLike[str] | TextIO) -> None:
    """Write streams as lines of JSON, for :func:`read_streams`, to a path (replacing the file) or an open file."""
    if isinstance(target, str | os.PathLike):
        with Path(target).open("w", encoding="utf-8") as file:
            write_streams(streams, file)
        return
    for stream in streams:
        head = {"watcher": stream.watcher, "stream": stream.stream}
        asked = {name: getattr(stream, name) for name in _OPTIONS}
        target.write(json.dumps({**head, "event": "begin", **asked}, allow_nan=False) + "\n")
        for event in stream.events:
            fields = dataclasses.asdict(event) if event.event == "change" else {"event": event.event, "rev": event.rev}
            target.write(json.dumps({**head, **fields}, allow_nan=False) + "\n")


def read_streams(source: str | os.PathLike[str] | Iterable[str]) -> list[WatchStream]:
    """The streams in a file, by its path, or in lines: one JSON object a line, those of several streams in any mixture.

    Empty lines and fields that are not of the form are ignored; so is a last line without an end, which a process was
    killed over. Raises ValueError for any other line that does not fit, with its number.
    """
    if isinstance(source, str | os.PathLike):
        with Path(source).open(encoding="utf-8") as file:
            return read_streams(list(file))
    lines = list(source)
    if lines and not lines[-1].endswith("\n") and not _is_json(lines[-1]):
        del lines[-1]
    streams: dict[tuple[str, int], WatchStream] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                _take(streams, json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
                raise ValueError(f"line {number} does not fit a stream of changes: {exc!r}") from exc
    return list(streams.values())


def _take(streams: dict[tuple[str, int], WatchStream], line: dict[str, Any]) -> None:
    name = (line["watcher"], line["stream"])
    if line["event"] == "begin":
        if name in streams:
            raise ValueError(f"stream {name[1]} of {name[0]} begins a second time")
        if line.get("coalesce"):
            raise ValueError("a watch that coalesces promises less: it is not to be validated")
        options = {option: line[option] for option in _OPTIONS if option in line}
        if options.get("kinds") is not None:
            options["kinds"] = tuple(options["kinds"])
        if type(options.get("since")) is not int:
            raise TypeError(f"since is {options.get('since')!r:.100}, not a revision")
        streams[name] = WatchStream(watcher=name[0], stream=name[1], **options)
        return
    if name not in streams:
        raise ValueError(f"stream {name[1]} of {name[0]} has not begun")
    streams[name].events.append(StreamEvent(**{field: line[field] for field in _FIELDS if field in line}))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


_OPTIONS: Final = ("since", "key", "prefix", "start", "stop", "kinds", "previous", "snapshot")
_FIELDS: Final = tuple(field.name for field in dataclasses.fields(StreamEvent))
