"""The handshake that opens every connection, as bytes in, bytes out: no I/O.

A connection is dialed for one purpose and opens with four frames, in lock step:

1. The dialer says ``hello``: who it is, what it speaks, what the connection is for.
2. The responder answers with a ``challenge``: the same about itself. Or with a refusal.
3. The dialer proves itself (``proof``). Or refuses.
4. The responder proves itself (``proof``), which also admits the dialer. Or refuses.

Without a secret nonces and proofs are empty. With one (``authentication.py``) the responder proves itself first, in a
``proof`` right behind its challenge: so each side is asked to admit only whom it knows to be authentic, and can act on
what the other says, be it about itself or why it refuses. There is nothing to negotiate: a side with a secret talks to
nobody without. After step 4 frames flow, and the transport decodes none of them: bytes of a peer that was not admitted
get no further than this module. ``docs/format.md`` has the bytes.
"""

from __future__ import annotations

import abc
import io
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

import cbor2

from replikv.errors import ConfigurationError
from replikv.transport.authentication import (
    HMAC_SHA256,
    NONCE_BYTES,
    Label,
    SharedSecret,
    draw_nonce,
    tag,
    transcript_of,
)
from replikv.transport.base import Hello
from replikv.transport.wire import HEADER_BYTES, ProtocolError, encode_frames

__all__ = [
    "AUTH_NONE",
    "CALL",
    "CHANNEL",
    "FRAMES",
    "HANDSHAKE_BYTES_MAX",
    "MAGIC",
    "REFUSAL_WITHOUT_TLS",
    "Handshake",
    "Initiator",
    "Responder",
]

MAGIC: Final = b"replikv\n"
"""Opens every handshake frame, so that a stranger (a browser, a port scan) is known by its first bytes."""

HANDSHAKE_BYTES_MAX: Final = 4 * 1024
"""A handshake frame. It comes from somebody who has proved nothing yet; ours have about 300 bytes."""

REASON_CHARACTERS_MAX: Final = 500
"""A refusal is a sentence, and goes into logs."""

FRAMES: Final = "frames"
"""Purpose of a connection: frames from the dialer to the responder, nothing in the other direction."""
CHANNEL: Final = "channel"
"""Purpose of a connection: frames in both directions, until either side closes."""
CALL: Final = "call"
"""Purpose of a connection: as a channel, for a dialer who may be no member. Only whether the two sides can talk at all
is settled here; who the dialer is, and what becomes of it, is said over the channel."""
PURPOSES: Final = frozenset({FRAMES, CHANNEL, CALL})

AUTH_NONE: Final = "none"
"""The authentication that proves nothing: empty nonces, empty proofs."""

CBOR_DEPTH_MAX: Final = 8
"""Ours is two deep; the rest is room for fields of later versions, which are skipped."""

T = TypeVar("T")


# -- handshake frames --------------------------------------------------------------------------------------------------


class _NoTags(dict[int, Any]):
    """Stands in for cbor2's decoders of tags, all of them: a handshake has none, and theirs compile regular
    expressions and build numbers of a billion digits.
    """

    def __missing__(self, tag: int) -> NoReturn:
        raise ProtocolError(f"tag {tag} in a handshake")


_NO_TAGS: Final = _NoTags()


def _encode(kind: str, fields: dict[str, Any]) -> bytes:
    """One handshake frame, header included."""
    body = MAGIC + cbor2.dumps({"kind": kind, **fields}, canonical=True)
    if len(body) > HANDSHAKE_BYTES_MAX:
        raise ConfigurationError(
            f"the {kind} of a handshake takes {len(body)} bytes, more than {HANDSHAKE_BYTES_MAX}:"
            f" shorten the node id, the address or the attributes"
        )
    return encode_frames([body])


def _decode(body: bytes) -> tuple[str, dict[str, Any]]:
    """Kind and fields of a handshake frame."""
    if not body.startswith(MAGIC):
        raise ProtocolError(f"not a replikv peer: its first bytes are {body[: len(MAGIC)]!r}")
    if len(body) > HANDSHAKE_BYTES_MAX:
        raise ProtocolError(f"a handshake frame of {len(body)} bytes, the limit is {HANDSHAKE_BYTES_MAX}")
    stream = io.BytesIO(body[len(MAGIC) :])
    try:
        fields = cbor2.load(
            stream,
            semantic_decoders=_NO_TAGS,
            max_depth=CBOR_DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except Exception as exc:  # whatever a decoder makes of hostile bytes, it must not end a peer
        raise ProtocolError(f"a handshake that is not plain CBOR: {exc}") from exc
    if stream.tell() != len(body) - len(MAGIC):
        raise ProtocolError("bytes after the CBOR of a handshake")
    if type(fields) is not dict:
        raise ProtocolError("a handshake that is not a CBOR map")
    return _field(fields, "kind", str), fields


def _field(fields: dict[str, Any], name: str, kind: type[T]) -> T:
    value = fields.get(name)
    if type(value) is not kind:  # exactly: a bool is no int here
        raise ProtocolError(f"a handshake whose {name!r} is not a {kind.__name__}")
    return value


def _count(fields: dict[str, Any], name: str) -> int:
    value = _field(fields, name, int)
    if value < 0:
        raise ProtocolError(f"a handshake whose {name!r} is negative")
    return value


def _hello_fields(hello: Hello, purpose: str, auth: str, nonce: bytes) -> dict[str, Any]:
    return {
        "protocol_min": hello.protocol_min,
        "protocol_max": hello.protocol_max,
        "cluster_id": hello.cluster_id,
        "node_id": hello.node_id,
        "incarnation": hello.incarnation,
        "bound_index": hello.bound_index,
        "address": hello.address,
        "attributes": dict(hello.attributes),
        "purpose": purpose,
        "auth": auth,
        "nonce": nonce,
    }


def _hello(fields: dict[str, Any]) -> Hello:
    attributes: dict[Any, Any] = _field(fields, "attributes", dict)
    if not all(type(key) is str and type(value) is str for key, value in attributes.items()):
        raise ProtocolError("a handshake whose 'attributes' are not strings")
    hello = Hello(
        cluster_id=_field(fields, "cluster_id", str),
        node_id=_field(fields, "node_id", str),
        incarnation=_field(fields, "incarnation", str),
        bound_index=_count(fields, "bound_index"),
        address=_field(fields, "address", str),
        protocol_min=_count(fields, "protocol_min"),
        protocol_max=_count(fields, "protocol_max"),
        attributes=attributes,
    )
    if hello.protocol_min > hello.protocol_max:
        raise ProtocolError(f"a handshake with protocol versions {hello.protocol_min} to {hello.protocol_max}")
    return hello


def _reason(fields: dict[str, Any]) -> str:
    """The other side's sentence, fit for a log: bounded, and without control characters."""
    text = _field(fields, "reason", str)[:REASON_CHARACTERS_MAX]
    return "".join(character if character.isprintable() else "?" for character in text)


REFUSAL_WITHOUT_TLS: Final = _encode(
    "refusal",
    {"reason": "this peer speaks TLS, and the one that dialed it does not: configure both alike", "auth": "tls"},
)
"""The answer, in the clear, to a hello where TLS was to come first."""


# -- the handshake -----------------------------------------------------------------------------------------------------


class Handshake(abc.ABC):
    """One side of a handshake: what to send first, then for each frame that arrives what to answer.

    It is over when ``refusal`` is set, or else when ``established`` is: send the last answer before looking.
    """

    _refuses: Label
    """What tags our refusals."""
    _refused: Label
    """What tags theirs."""

    def __init__(self, hello: Hello, secret: SharedSecret | None) -> None:
        self._ours = hello
        self._secrets = secret
        self._auth = AUTH_NONE if secret is None else HMAC_SHA256
        self._nonce = b"" if secret is None else draw_nonce()
        self._transcript = b""
        """Of hello and challenge, with a secret, once both are known."""
        self._secret = b""
        """The secret that both sides know, once the other side has proved it."""
        self.theirs: Hello | None = None
        """What the other side said of itself; proved only once established."""
        self.version = 0
        """The protocol version of this connection, once ``theirs`` is known."""
        self.purpose = ""
        """What the connection is for, once ``theirs`` is known."""
        self.refusal: str | None = None
        """The sentence that ended it, whichever side said it."""
        self.declined = False
        """Whether the refusal is ours, not theirs."""
        self.unauthenticated = False
        """Whether it was refused because a side did not prove itself, or by one that did not: not to be acted on."""
        self.established = False
        self.keys: tuple[bytes, bytes] | None = None
        """With a secret, once established: what seals the frames that we send, and what those that we receive."""

    @abc.abstractmethod
    def start(self) -> bytes:
        """What to send before anything has arrived."""

    @abc.abstractmethod
    def receive(self, body: bytes) -> bytes:
        """Take the body of a frame; the frames to answer with, or nothing. Raises ProtocolError."""

    def _expect(self, body: bytes, kind: str) -> dict[str, Any] | None:
        """The fields of a frame of this kind; None when the other side refused instead."""
        got, fields = _decode(body)
        if got == "refusal":
            self._take_refusal(fields)
            return None
        if got != kind:
            raise ProtocolError(f"{got!r} in a handshake where {kind!r} was expected")
        return fields

    def _take_refusal(self, fields: dict[str, Any]) -> None:
        self.refusal = _reason(fields)
        self.unauthenticated = fields.get("auth", self._auth) != self._auth
        if self._secrets is not None:
            words, proof = _field(fields, "reason", str), fields.get("proof")
            self.unauthenticated = not (
                self._transcript
                and type(proof) is bytes
                and self._secrets.known(self._refused, self._transcript, proof, words)
            )

    def _refuse(self, reason: str) -> bytes:
        self.refusal = reason
        self.declined = True
        words = reason[:REASON_CHARACTERS_MAX]
        fields: dict[str, Any] = {"reason": words, "auth": self._auth}
        if self._secret:
            fields["proof"] = tag(self._secret, self._refuses, self._transcript, words)
        return _encode("refusal", fields)

    def _refuse_unauthenticated(self, reason: str) -> bytes:
        self.unauthenticated = True
        return self._refuse(reason)

    def _agree(self, fields: dict[str, Any]) -> str | None:
        """Take the other side's word on itself. None, or why the two sides cannot talk at all."""
        ours = self._ours
        theirs = self.theirs = _hello(fields)
        auth, nonce = _field(fields, "auth", str), _field(fields, "nonce", bytes)
        self.purpose = _field(fields, "purpose", str)
        self.version = min(ours.protocol_max, theirs.protocol_max)
        if self.version < max(ours.protocol_min, theirs.protocol_min):
            return (
                f"{ours.node_id} speaks the peer protocol {ours.protocol_min} to {ours.protocol_max},"
                f" {theirs.node_id} {theirs.protocol_min} to {theirs.protocol_max}: upgrade the older one"
            )
        if auth != self._auth:
            self.unauthenticated = True
            return f"{ours.node_id} authenticates by {self._auth!r}, {theirs.node_id} by {auth!r}: configure both alike"
        if self._secrets is not None and (len(nonce) != NONCE_BYTES or nonce == self._nonce):
            raise ProtocolError(f"a nonce of {len(nonce)} bytes, or our own")
        if self.purpose not in PURPOSES:
            return f"{ours.node_id} knows no connections for {self.purpose!r}"
        if ours.node_id == theirs.node_id and self.purpose != CALL:  # who wants to join under a taken id is told so
            return f"{ours.node_id} is the id of both sides: a peer cannot talk to itself or to its namesake"
        return None

    def _known(self) -> Hello:
        assert self.theirs is not None
        return self.theirs

    def _strangers(self) -> str:
        return f"{self._ours.node_id} and {self._known().node_id} do not know the same secret: configure both alike"

    def _proof(self, label: Label) -> bytes:
        return _encode("proof", {"proof": tag(self._secret, label, self._transcript) if self._secret else b""})

    @staticmethod
    def _check_empty(proof: bytes) -> None:
        if proof:
            raise ProtocolError(f"a proof where the authentication is {AUTH_NONE!r}")


class Initiator(Handshake):
    """The dialer's side. ``admit`` has the last word on the responder, once it has proved itself."""

    _refuses = Label.DIALER_REFUSES
    _refused = Label.RESPONDER_REFUSES

    def __init__(
        self, hello: Hello, purpose: str, admit: Callable[[Hello], str | None], secret: SharedSecret | None = None
    ) -> None:
        super().__init__(hello, secret)
        self._purpose = purpose
        self._admit = admit
        self._hello = b""
        self._proved = False

    def start(self) -> bytes:
        """The hello."""
        outgoing = _encode("hello", _hello_fields(self._ours, self._purpose, self._auth, self._nonce))
        self._hello = outgoing[HEADER_BYTES:]
        return outgoing

    def receive(self, body: bytes) -> bytes:
        """Answer the challenge with a proof; take the responder's proof. Or refuse. Raises ProtocolError."""
        if self.theirs is None:
            return self._take_challenge(body)
        fields = self._expect(body, "proof")
        if fields is None:
            return b""
        proof = _field(fields, "proof", bytes)
        if self._secrets is None:
            self._check_empty(proof)
        elif not self._proved:
            return self._take_proof(proof, self._secrets)
        else:
            if self._secrets.known(Label.ADMITTED, self._transcript, proof) != self._secret:
                raise ProtocolError("a responder that has admitted us without a proof")
            self.keys = (
                tag(self._secret, Label.FRAMES_OF_DIALER, self._transcript),
                tag(self._secret, Label.FRAMES_OF_RESPONDER, self._transcript),
            )
        self.established = True
        return b""

    def _take_challenge(self, body: bytes) -> bytes:
        fields = self._expect(body, "challenge")
        if fields is None:
            return b""
        reason = self._agree(fields)
        if reason is not None:
            return self._refuse(reason)
        if self._secrets is not None:
            self._transcript = transcript_of(self._hello, body)
            return b""
        return self._judge()

    def _take_proof(self, proof: bytes, secrets: SharedSecret) -> bytes:
        secret = secrets.shared(self._transcript, proof)
        if secret is None:
            return self._refuse_unauthenticated(self._strangers())
        self._secret, self._proved = secret, True
        return self._judge()

    def _judge(self) -> bytes:
        reason = self._admit(self._known())
        return self._proof(Label.DIALER) if reason is None else self._refuse(reason)

    def _agree(self, fields: dict[str, Any]) -> str | None:
        reason = super()._agree(fields)
        if self.purpose != self._purpose:
            raise ProtocolError(f"a connection for {self._purpose!r} was answered as one for {self.purpose!r}")
        return reason


class Responder(Handshake):
    """The accepting side. ``admit`` is asked about the dialer and its purpose once the dialer has proved itself."""

    _refuses = Label.RESPONDER_REFUSES
    _refused = Label.DIALER_REFUSES

    def __init__(
        self, hello: Hello, admit: Callable[[Hello, str], str | None], secret: SharedSecret | None = None
    ) -> None:
        super().__init__(hello, secret)
        self._admit = admit

    def start(self) -> bytes:
        """Nothing: the dialer speaks first."""
        return b""

    def receive(self, body: bytes) -> bytes:
        """Answer the hello with a challenge, the proof with a proof. Or refuse. Raises ProtocolError."""
        if self.theirs is None:
            return self._take_hello(body)
        fields = self._expect(body, "proof")
        if fields is None:
            return b""
        proof = _field(fields, "proof", bytes)
        if self._secrets is None:
            self._check_empty(proof)
        else:
            secret = self._secrets.known(Label.DIALER, self._transcript, proof)
            if secret is None:
                return self._refuse_unauthenticated(self._strangers())
            self._secret = secret
        reason = self._admit(self._known(), self.purpose)
        if reason is not None:
            return self._refuse(reason)
        if self._secret:
            self.keys = (
                tag(self._secret, Label.FRAMES_OF_RESPONDER, self._transcript),
                tag(self._secret, Label.FRAMES_OF_DIALER, self._transcript),
            )
        self.established = True
        return self._proof(Label.ADMITTED)

    def _take_hello(self, body: bytes) -> bytes:
        fields = self._expect(body, "hello")
        if fields is None:
            return b""
        reason = self._agree(fields)
        if reason is not None:
            return self._refuse(reason)
        challenge = _encode("challenge", _hello_fields(self._ours, self.purpose, self._auth, self._nonce))
        if self._secrets is None:
            return challenge
        self._transcript = transcript_of(body, challenge[HEADER_BYTES:])
        return challenge + _encode("proof", {"proof": self._secrets.proofs(self._transcript)})
