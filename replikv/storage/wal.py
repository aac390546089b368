"""The write-ahead log: every write is one frame, one ``pwrite`` and one ``fdatasync``, in segments that were filled
with zeros and synced before (so that a sync has no metadata to write).

``frames`` decides whether a bad frame is torn or damaged, ``segments`` makes the files, ``records`` says what stands
in a frame, ``recovery`` reads it all back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from replikv.errors import InternalError, StorageError
from replikv.raft.entries import HardState, SnapshotMetadata
from replikv.raft.stable import Write
from replikv.storage.base import StorageFullError
from replikv.storage.filesystem import File, FileSystem, remove_temporaries
from replikv.storage.frames import FIRST_SEQUENCE, encode_frame, frame_bytes
from replikv.storage.records import encode_head, encode_writes
from replikv.storage.recovery import Replay, scan_log, settle_log, sync, wipe
from replikv.storage.segments import FRAMES_START, Segment, SegmentHead, SegmentSupply, segment_names

__all__ = ["Wal"]


class Wal:
    """An open log, good for appending. Made by :meth:`create` or :meth:`open`."""

    marker: SnapshotMetadata
    """What the head of the next segment will say is the newest snapshot; its owner keeps it up."""

    def __init__(
        self,
        filesystem: FileSystem,
        directory: Path,
        *,
        segment_bytes: int,
        ahead: bool,
        identity: bytes,
        marker: SnapshotMetadata,
        hard_state: HardState,
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._supply = SegmentSupply(filesystem, directory, segment_bytes, ahead=ahead)
        self._identity = identity
        self.marker = marker
        self._hard_state = hard_state
        # The end of the log: entries must follow it or replace what is before it.
        self._last_index = marker.index
        # In order; the last one is written to. Empty only until the first cut.
        self._segments: list[Segment] = []
        self._file: File | None = None
        # Where the next frame goes in the last segment, its number, and the checksum of the frame before it.
        self._offset = 0
        self._sequence = FIRST_SEQUENCE
        self._previous = 0
        # Up to where a write that failed for want of room may have left bytes behind _offset; 0: nothing to wipe.
        self._soiled_end = 0
        self._failure: BaseException | None = None

    # -- coming to be --------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        filesystem: FileSystem,
        directory: Path,
        *,
        segment_bytes: int,
        ahead: bool,
        identity: bytes,
        marker: SnapshotMetadata,
        hard_state: HardState,
    ) -> Wal:
        """A new log that begins after ``marker``. Removes what an attempt that crashed has left. Durable on return."""
        remove_temporaries(filesystem, directory)
        for _, name in segment_names(filesystem.list_directory(directory)):
            filesystem.unlink(directory / name)
        filesystem.sync_directory(directory)
        wal = cls(
            filesystem,
            directory,
            segment_bytes=segment_bytes,
            ahead=ahead,
            identity=identity,
            marker=marker,
            hard_state=hard_state,
        )
        try:
            wal._append([], ())
        except BaseException:
            wal.close()
            raise
        return wal

    @classmethod
    def open(
        cls, filesystem: FileSystem, directory: Path, *, segment_bytes: int, ahead: bool
    ) -> tuple[Wal, Replay] | None:
        """The log of the directory and what is in it; None when nothing was ever written to it.

        A torn last frame is cut, durably. Raises CorruptionError with file and offset for anything else that is not
        as it was written.
        """
        filesystem.sync_directory(directory)  # names that a crash left visible must be durable before we rest on them
        remove_temporaries(filesystem, directory)
        scan = scan_log(filesystem, directory)
        replay = scan.replay
        if replay.identity is None or replay.marker is None:
            return None
        wal = cls(
            filesystem,
            directory,
            segment_bytes=segment_bytes,
            ahead=ahead,
            identity=replay.identity,
            marker=replay.marker,
            hard_state=replay.hard_state,
        )
        wal._segments, wal._file = scan.segments, settle_log(filesystem, scan)
        wal._offset, wal._sequence, wal._previous = scan.offset, scan.sequence, scan.previous
        wal._last_index = replay.last_index
        return wal, replay

    @property
    def frames_written(self) -> int:
        """How many frames were ever written to this log, its first head included."""
        return self._sequence - FIRST_SEQUENCE

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> None:
        """Append the writes as one frame and sync it. Errors as in ``Storage.write``.

        Raises InternalError, before anything is written, for entries that leave a gap.
        """
        self._expect_sound()
        last_index = self._last_index_after(writes)
        parts = encode_writes(writes)
        if not parts:
            return
        try:
            self._append(parts, writes)
        except StorageFullError:
            raise
        except BaseException as error:
            self._failure = error
            raise
        self._last_index = last_index

    def release(self, index: int) -> None:
        """Delete the segments before the last one that hold only entries up to ``index``.

        Where that takes room that is not there, they stay until the next time. Any other failure is final, as that of
        a write: what of it is durable nobody knows, and to go on deleting could leave a gap.
        """
        self._expect_sound()
        # The first frame of the last segment says whose log this is, and term and vote; until it has one, the segment
        # before it is needed for that.
        needed = 1 if self._offset > FRAMES_START else 2
        try:
            while len(self._segments) > needed and self._segments[0].last_index <= index:
                try:
                    self._filesystem.unlink(self._segments[0].path)
                except StorageFullError:
                    return  # a file system that never writes in place needs room for this, too
                del self._segments[0]
                # One at a time: a crash must not leave the earlier of two behind, which would look like a gap.
                self._filesystem.sync_directory(self._directory)
        except BaseException as error:
            self._failure = error
            raise

    def close(self) -> None:
        """Close the files, and end the thread if there is one."""
        self._supply.close()
        if self._file is not None:
            self._file.close()
        if self._failure is None:
            self._failure = InternalError("it was closed")

    def _expect_sound(self) -> None:
        if self._failure is not None:
            raise StorageError(
                f"{self._directory} takes no more writes, since one has failed ({self._failure}): restart this peer"
            ) from self._failure

    def _append(self, parts: list[bytes], writes: Sequence[Write]) -> None:
        if self._soiled_end:
            self._wipe_soiled()
        if self._offset == FRAMES_START:
            parts = self._head() + parts
        if self._file is None or self._offset + frame_bytes(_length(parts)) > self._segments[-1].head.length:
            if self._offset != FRAMES_START:
                parts = self._head() + parts
            self._cut(parts, writes)
        file = self._file
        assert file is not None
        frame, checksum = encode_frame(parts, self._sequence, self._previous)
        try:
            file.pwrite(frame, self._offset)
        except StorageFullError:
            self._soiled_end = self._offset + len(frame)
            raise
        sync(file)
        self._offset += len(frame)
        self._sequence, self._previous = self._sequence + 1, checksum
        segment = self._segments[-1]
        for write in writes:
            if write.entries:
                segment.last_index = max(segment.last_index, write.entries[-1].index)
            if write.hard_state is not None:
                self._hard_state = write.hard_state
        if self._offset > segment.head.length // 2:
            self._supply.prepare()

    def _cut(self, parts: list[bytes], writes: Sequence[Write]) -> None:
        """Go on in a new segment, with room for the parts."""
        head = SegmentHead(
            sequence=self._segments[-1].head.sequence + 1 if self._segments else 1,
            first_index=next((write.entries[0].index for write in writes if write.entries), self._last_index + 1),
            length=0,
            frame_sequence=self._sequence,
            previous=self._previous,
        )
        segment, file = self._supply.take(head, frame_bytes(_length(parts)))
        if self._file is not None:
            self._file.close()
        self._segments.append(segment)
        self._file, self._offset = file, FRAMES_START

    def _head(self) -> list[bytes]:
        return encode_head(self._identity, self.marker, self._hard_state)

    def _wipe_soiled(self) -> None:
        """Left as it is, it would mix with the next frame, which could then be torn and look damaged."""
        assert self._file is not None
        wipe(self._file, self._offset, self._soiled_end)
        sync(self._file)
        self._soiled_end = 0

    def _last_index_after(self, writes: Sequence[Write]) -> int:
        last_index = self._last_index
        for write in writes:
            if write.snapshot is not None:
                last_index = write.snapshot.index
            if write.entries:
                if write.entries[0].index > last_index + 1:
                    raise InternalError(f"entry {write.entries[0].index} was to follow entry {last_index}")
                last_index = write.entries[-1].index
        return last_index


def _length(parts: list[bytes]) -> int:
    return sum(map(len, parts))
