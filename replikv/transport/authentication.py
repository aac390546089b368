"""A shared secret: how two peers prove to each other that they know it, and how they seal the frames that follow.

Pure functions of bytes. ``docs/format.md`` has the bytes, ``docs/security.md`` what they are good for.

Both sides prove themselves by HMAC-SHA-256 over one transcript: the very bytes of the hello and of the challenge, each
with a fresh nonce. So a proof is worth nothing on another connection (replay), in the other direction (each use of the
secret has a label of its own: reflection), for another purpose, under another name, or with another version or
mechanism than both sides have read (downgrade). The keys that seal the frames are made in the same way, one for each
direction.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from replikv.errors import ConfigurationError
from replikv.transport.wire import FrameDecoder, ProtocolError, encode_frames

__all__ = [
    "HMAC_SHA256",
    "NONCE_BYTES",
    "SEAL_BYTES",
    "SECRETS_MAX",
    "SECRET_BYTES_MIN",
    "Label",
    "SealedFrameDecoder",
    "Sealer",
    "SharedSecret",
    "draw_nonce",
    "tag",
    "transcript_of",
]

HMAC_SHA256: Final = "hmac-sha256"
"""The name of the mechanism in the handshake."""

SECRET_BYTES_MIN: Final = 16
"""128 bits, if they are random. Whoever has seen a proof can try secrets at home, as many as he likes: nothing slows
him down but their number."""

SECRETS_MAX: Final = 4
"""Secrets that are accepted at a time. To change one takes two."""

NONCE_BYTES: Final = 32
PROOF_BYTES: Final = hashlib.sha256().digest_size

SEAL_BYTES: Final = 16
"""What a seal adds to a frame: HMAC-SHA-256, cut to 128 bits (RFC 2104, section 5). It is checked as frames arrive, and
one failure ends the connection: there is no second guess."""

_SEQUENCE: Final = struct.Struct(">Q")
_LENGTH: Final = struct.Struct(">I")


class Label(enum.Enum):
    """What a tag is for: each is written by one side, at one place. They are in the format: never change one."""

    RESPONDER = b"responder"
    DIALER = b"dialer"
    ADMITTED = b"admitted"
    """By the responder, last of all."""
    DIALER_REFUSES = b"dialer refuses"
    RESPONDER_REFUSES = b"responder refuses"
    FRAMES_OF_DIALER = b"frames of dialer"
    """The key that seals what the dialer sends."""
    FRAMES_OF_RESPONDER = b"frames of responder"


def draw_nonce() -> bytes:
    """So many bytes that nobody has seen before."""
    return secrets.token_bytes(NONCE_BYTES)


def transcript_of(hello: bytes, challenge: bytes) -> bytes:
    """What both sides have said before either has proved itself, as 32 bytes."""
    digest = hashlib.sha256()
    for body in (hello, challenge):
        digest.update(_LENGTH.pack(len(body)) + body)
    return digest.digest()


def tag(secret: bytes, label: Label, transcript: bytes, words: str = "") -> bytes:
    """A proof or a key: what only one who knows the secret can compute. ``words`` are those of a refusal."""
    return hmac.digest(secret, b"replikv 1 " + label.value + b"\0" + transcript + words.encode(), "sha256")


class SharedSecret:
    """What a cluster's members know and nobody else: one secret, or several while it is being changed."""

    def __init__(self, secret: str | bytes | Sequence[str | bytes]) -> None:
        """Raises ConfigurationError for what is no secret, or too short for one."""
        alternatives: object = [secret] if isinstance(secret, str | bytes) else secret
        if not isinstance(alternatives, Sequence) or isinstance(alternatives, bytearray | memoryview):
            raise ConfigurationError(f"secret must be str, bytes or a list of those, not {type(secret).__name__}")
        if not 1 <= len(alternatives) <= SECRETS_MAX:
            raise ConfigurationError(
                f"secret has {len(alternatives)} alternatives: one secret, or up to {SECRETS_MAX} while it is changed"
            )
        self._secrets = tuple(map(_as_bytes, alternatives))

    def __repr__(self) -> str:
        return f"<{len(self._secrets)} shared secrets>"

    def proofs(self, transcript: bytes) -> bytes:
        """The responder's: one for each secret that it would accept."""
        return b"".join(tag(secret, Label.RESPONDER, transcript) for secret in self._secrets)

    def shared(self, transcript: bytes, proofs: bytes) -> bytes | None:
        """Our first secret that the responder has proved to know."""
        given = [proofs[start : start + PROOF_BYTES] for start in range(0, len(proofs), PROOF_BYTES)]
        for secret in self._secrets:
            expected = tag(secret, Label.RESPONDER, transcript)
            if any([hmac.compare_digest(expected, proof) for proof in given[:SECRETS_MAX]]):  # noqa: C419  # all of them
                return secret
        return None

    def known(self, label: Label, transcript: bytes, proof: bytes, words: str = "") -> bytes | None:
        """That of our secrets by which this tag was made, if any was."""
        for secret in self._secrets:
            if hmac.compare_digest(tag(secret, label, transcript, words), proof):
                return secret
        return None


def _as_bytes(secret: str | bytes) -> bytes:
    if not isinstance(secret, str | bytes):
        raise ConfigurationError(f"secret must be str or bytes, not {type(secret).__name__}")
    try:
        data = secret.encode() if isinstance(secret, str) else secret
    except UnicodeEncodeError as exc:
        raise ConfigurationError("secret has characters that UTF-8 has not: pass it as bytes") from exc
    if len(data) < SECRET_BYTES_MIN:
        raise ConfigurationError(
            f"secret has {len(data)} bytes, and needs {SECRET_BYTES_MIN} at least, drawn at random:"
            " secrets.token_urlsafe(32) draws one"
        )
    return data


# -- frames ------------------------------------------------------------------------------------------------------------


class Sealer:
    """Seals the frames of one direction of one connection, in the order in which they are sent."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def encode(self, frames: Iterable[bytes]) -> bytes:
        """As :func:`encode_frames`, each frame with its seal behind it."""
        key, sealed = self._key, []
        for frame in frames:
            sealed.append(frame + hmac.digest(key, _SEQUENCE.pack(self._count) + frame, "sha256")[:SEAL_BYTES])
            self._count += 1
        return encode_frames(sealed)


class SealedFrameDecoder(FrameDecoder):
    """Cuts a stream into frames and checks their seals: one that was changed, left out, repeated or moved raises."""

    def __init__(self, limit: int, key: bytes) -> None:
        super().__init__(limit + SEAL_BYTES)
        self._key = key
        self._count = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that these bytes complete, without their seals. Raises ProtocolError."""
        return [self._open(frame) for frame in super().feed(data)]

    def _open(self, sealed: bytes) -> bytes:
        frame = sealed[:-SEAL_BYTES]
        seal = hmac.digest(self._key, _SEQUENCE.pack(self._count) + frame, "sha256")[:SEAL_BYTES]
        if not hmac.compare_digest(seal, sealed[-SEAL_BYTES:]):
            raise ProtocolError(f"frame {self._count} of this connection was changed on its way: its seal is broken")
        self._count += 1
        return frame
