"""TLS as bytes in, bytes out: the contexts that the application gives, and one session of them.

No stream wraps the socket: what is encrypted goes out like anything else, at once where nothing waits before it. And
who is refused hears why: the alert is sent before the connection is closed.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any, Final

from replikv.errors import ConfigurationError
from replikv.transport.base import Hello
from replikv.transport.wire import PeerConnectionError, UnauthenticatedError

__all__ = ["TlsContexts", "TlsSession"]

RECORDS_BYTES_MAX: Final = 64 * 1024
"""What is decrypted by one call: what one read brings is hardly more."""

BOTH: Final = ssl.PROTOCOL_TLS


class TlsContexts:
    """The contexts of the accepting and of the dialing side. Both show a certificate, and ask for one."""

    def __init__(self, tls: ssl.SSLContext | tuple[ssl.SSLContext, ssl.SSLContext], *, names: bool) -> None:
        """``names``: whether a peer's certificate must be for its node id. Raises ConfigurationError."""
        contexts: Any = (tls, tls) if isinstance(tls, ssl.SSLContext) else tls
        pair = isinstance(contexts, tuple | list) and len(contexts) == 2
        if not (pair and all(isinstance(context, ssl.SSLContext) for context in contexts)):
            raise ConfigurationError(f"tls must be an ssl.SSLContext, or a tuple of two, not {tls!r}")
        self._accepting, self._dialing = contexts
        self._names = names
        for context, side, protocol in (
            (self._accepting, "accepting", ssl.PROTOCOL_TLS_SERVER),
            (self._dialing, "dialing", ssl.PROTOCOL_TLS_CLIENT),
        ):
            if context.protocol not in (protocol, BOTH):
                raise ConfigurationError(
                    f"tls has a context of {context.protocol.name} for the {side} side; a peer accepts and dials, so it"
                    " takes two: tls=(accepting, dialing), of PROTOCOL_TLS_SERVER and PROTOCOL_TLS_CLIENT"
                )
            if context.verify_mode is not ssl.CERT_REQUIRED:
                raise ConfigurationError(
                    f"the {side} context of tls has verify_mode {context.verify_mode.name}, and would let in whoever"
                    " has no certificate: set verify_mode = ssl.CERT_REQUIRED, and load your cluster's authority"
                )

    def accept(self) -> TlsSession:
        """A session for a connection that was accepted."""
        return TlsSession(self._accepting, None, names=self._names)

    def dial(self, host: str) -> TlsSession:
        """A session for a connection that was dialed at this host. Raises UnauthenticatedError: no name for TLS."""
        try:
            return TlsSession(self._dialing, host, names=self._names)
        except (ValueError, ssl.SSLError) as exc:
            raise UnauthenticatedError(f"{host!r} is no name that a certificate could have: {exc}") from exc


class TlsSession:
    """One connection's TLS. Errors of the bytes that arrive are PeerConnectionErrors; of those that go out, none."""

    def __init__(self, context: ssl.SSLContext, host: str | None, *, names: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self.names = names
        """Whether a certificate must be for its owner's node id."""
        self.established = False

    def shake_hands(self, data: bytes) -> PeerConnectionError | None:
        """Take what has arrived; done once ``established``. The fault that ended it, if one did.

        Send what is :meth:`outgoing` in any case.
        """
        self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as exc:
            return _fault(exc)
        self.established = True
        return None

    def outgoing(self) -> bytes:
        """What is to be sent, and was not taken yet."""
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes | None:
        """What to send for it; None where the session is over: whoever receives on it will tell."""
        try:
            self._object.write(data)
        except ssl.SSLError:
            return None
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> bytes | None:
        """What was sent, as far as it has arrived whole; None at the end that the other side has made.

        Raises PeerConnectionError.
        """
        if data:
            self._incoming.write(data)
        plain: list[bytes] = []
        try:
            while part := self._object.read(RECORDS_BYTES_MAX):
                plain.append(part)
        except ssl.SSLWantReadError:
            return b"".join(plain)
        except ssl.SSLError as exc:
            raise _fault(exc) from exc
        return b"".join(plain) or None

    def farewell(self) -> bytes:
        """What tells the other side that nothing was cut off."""
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        return self._outgoing.read()

    def objection(self, hello: Hello) -> str | None:
        """Why this certificate is not one of who comes with it; None where it is, or names are not looked at."""
        if not self.names:
            return None
        certificate = self._object.getpeercert() or {}
        alternatives: Any = certificate.get("subjectAltName", ())
        names = [value for kind, value in alternatives if kind == "DNS"]
        if hello.node_id in names:
            return None
        return (
            f"{hello.node_id!r} has shown a certificate for {', '.join(names) or 'no name'}, not for {hello.node_id!r}"
        )


def _fault(exc: ssl.SSLError) -> UnauthenticatedError:
    reason = exc.reason or str(exc)
    if isinstance(exc, ssl.SSLCertVerificationError):
        return UnauthenticatedError(f"the other side's certificate is not accepted: {exc.verify_message}")
    if "ALERT" in reason:
        return UnauthenticatedError(f"the other side does not accept our certificate, or our TLS: {reason}")
    if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
        return UnauthenticatedError("the other side has shown no certificate")
    return UnauthenticatedError(f"no TLS with the other side: {reason}")
