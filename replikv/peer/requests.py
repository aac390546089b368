"""What peers ask each other on channels, one request and one answer: canonical JSON behind the byte of its kind.

Changes of the membership are rare and wait for each other, so they have none of the frames' hurry, and a connection of
their own tells a lost answer from a late one. Bytes that do not parse are a ``MalformedFrameError``.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, TypeVar

from replikv.peer.protocol import MalformedFrameError
from replikv.raft.membership import ChangeKind, MemberChange

__all__ = [
    "NODE_ID_BYTES_MAX",
    "REQUEST_BYTES_MAX",
    "Accepted",
    "Answer",
    "ChangeRequest",
    "CompareRequest",
    "Denial",
    "Denied",
    "JoinRequest",
    "Request",
    "decode_answer",
    "decode_request",
    "encode_answer",
    "encode_request",
    "is_request",
]

REQUEST_BYTES_MAX: Final = 64 * 1024
"""A request or an answer; the longest name a few hundred members."""

NODE_ID_BYTES_MAX: Final = 128
"""A node id in UTF-8: it stands in every handshake and in the membership."""
WORD_BYTES_MAX: Final = 512
"""An address or an attribute of a newcomer; a host name has at most 253."""
ATTRIBUTES_MAX: Final = 32
"""Ours are six; the rest is room for those of later versions."""

REQUEST: Final = 65
ANSWER: Final = 66
"""The first byte of the frame, apart from those of :class:`FrameKind`. On the wire: never change one."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChangeRequest:
    """Have the leader change the membership."""

    changes: tuple[MemberChange, ...]
    forced: bool = False
    """Also when it costs the quorum."""
    repeated: bool = False
    """Asked before, without an answer: what is done already is no mistake."""


@dataclasses.dataclass(frozen=True, slots=True)
class JoinRequest:
    """Have a newcomer added as a learner, or known again. Asked of any member, which asks the leader."""

    node_id: str
    incarnation: str
    address: str
    cluster_id: str = ""
    """The cluster that it means to join, if it knows; empty else."""
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class CompareRequest:
    """Say whether this is the same cluster. Asked of any member, and answered by it."""

    cluster_id: str


class Denial(enum.StrEnum):
    """Whose hand it is in that a request was not granted."""

    ELSEWHERE = "elsewhere"
    """This peer does not lead, or nobody does, as of now: try again, there or here."""
    LATER = "later"
    """The cluster's state, as of now: the same request may be granted later. Surely nothing was changed."""
    UNKNOWN = "unknown"
    """The change was proposed, and what became of it is not known: ask again, as ``repeated``."""
    MISTAKE = "mistake"
    """The request makes no sense for this cluster."""
    IDENTITY = "identity"
    """The newcomer is not who it says it is: a taken node id, a lost disk, another cluster."""
    VERSION = "version"
    """The newcomer's program does not know all that the cluster uses."""


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """The configuration that was asked for is final at ``index``."""

    index: int
    cluster_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Denied:
    """It was not granted, and why, in words."""

    denial: Denial
    reason: str


Request: TypeAlias = ChangeRequest | JoinRequest | CompareRequest
Answer: TypeAlias = Accepted | Denied

_REQUESTS: Final[dict[str, type[Request]]] = {
    "change": ChangeRequest,
    "join": JoinRequest,
    "compare": CompareRequest,
}
_ANSWERS: Final[dict[str, type[Answer]]] = {"accepted": Accepted, "denied": Denied}


def is_request(frame: bytes) -> bool:
    """Whether the first frame of a channel is one."""
    return frame[:1] == bytes([REQUEST])


def encode_request(request: Request) -> bytes:
    """The frame of a request."""
    return _encode(REQUEST, _REQUESTS, request)


def encode_answer(answer: Answer) -> bytes:
    """The frame of an answer."""
    return _encode(ANSWER, _ANSWERS, answer)


def decode_request(frame: bytes) -> Request:
    """The reverse of :func:`encode_request`. Raises MalformedFrameError."""
    name, fields = _decode(REQUEST, frame)
    try:
        if name == "join":
            types: dict[str, type] = dict.fromkeys(("node_id", "incarnation", "address", "cluster_id"), str)
            return _known_words(_checked(JoinRequest(**fields), **types, attributes=dict))
        if name == "compare":
            return _checked(CompareRequest(**fields), cluster_id=str)
        if name == "change":
            changes = tuple(
                _checked(MemberChange(**{**change, "kind": ChangeKind(change["kind"])}), node_id=str)
                for change in fields.pop("changes")
            )
            return _checked(ChangeRequest(changes, **fields), forced=bool, repeated=bool)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise MalformedFrameError(f"a request whose fields are wrong: {exc}") from exc
    raise MalformedFrameError(f"a request of an unknown kind: {name[:32]!r}")


def decode_answer(frame: bytes) -> Answer:
    """The reverse of :func:`encode_answer`. Raises MalformedFrameError."""
    name, fields = _decode(ANSWER, frame)
    try:
        if name == "accepted":
            return _checked(Accepted(**fields), index=int, cluster_id=str)
        if name == "denied":
            return _checked(Denied(Denial(fields.pop("denial")), **fields), reason=str)
    except (TypeError, ValueError, KeyError) as exc:
        raise MalformedFrameError(f"an answer whose fields are wrong: {exc}") from exc
    raise MalformedFrameError(f"an answer of an unknown kind: {name[:32]!r}")


def _encode(kind: int, names: Mapping[str, type], content: Request | Answer) -> bytes:
    name = next(name for name, known in names.items() if isinstance(content, known))
    fields = {name: _plain(value) for name, value in dataclasses.asdict(content).items()}
    body = json.dumps({"kind": name, **fields}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return bytes([kind]) + body.encode()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [{name: part for name, part in change.items() if part is not None} for change in value]
    return value


def _decode(kind: int, frame: bytes) -> tuple[str, dict[str, Any]]:
    if frame[:1] != bytes([kind]) or len(frame) > REQUEST_BYTES_MAX:
        raise MalformedFrameError(f"a frame of {len(frame)} bytes where a request or an answer was expected")
    try:
        fields = json.loads(frame[1:])
        # JSON has escapes for what is no text: half of a surrogate pair could be read, and never be written to the log.
        json.dumps(fields, ensure_ascii=False).encode()
        name = fields.pop("kind")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as exc:
        raise MalformedFrameError("a request or an answer that is no JSON object with a kind") from exc
    if not isinstance(name, str):
        raise MalformedFrameError("a request or an answer whose kind is no string")
    return name, fields


def _known_words(request: JoinRequest) -> JoinRequest:
    """The request, if its words may stand in the membership, of which every peer keeps a copy. Raises ValueError."""
    if not request.node_id or not request.incarnation or not request.address:
        raise ValueError("a newcomer without a node id, an incarnation or an address")
    words = (request.incarnation, request.address, *request.attributes, *request.attributes.values())
    if len(request.node_id.encode()) > NODE_ID_BYTES_MAX or any(len(word.encode()) > WORD_BYTES_MAX for word in words):
        raise ValueError("a newcomer that takes too much room in the membership")
    if len(request.attributes) > ATTRIBUTES_MAX:
        raise ValueError(f"a newcomer with {len(request.attributes)} attributes")
    return request


T = TypeVar("T")


def _checked(content: T, **types: type) -> T:
    """The content, if these fields are of these types and ``attributes`` are strings. Raises TypeError."""
    for name, expected in types.items():
        if type(getattr(content, name)) is not expected:
            raise TypeError(f"{name} is no {expected.__name__}")
    if isinstance(content, MemberChange):
        for word in (content.address, content.incarnation):
            if word is not None and type(word) is not str:
                raise TypeError("an address or an incarnation is no string")
    attributes = getattr(content, "attributes", None)
    if attributes is not None and not all(type(word) is str for item in attributes.items() for word in item):
        raise TypeError("attributes are no strings")
    return content
