"""Certificates that are made for a test, and the contexts that a peer makes of them."""

from __future__ import annotations

import datetime
import ssl
import warnings

import trustme

__all__ = ["AUTHORITY", "OTHER_AUTHORITY", "anonymous_contexts", "contexts", "single_context"]

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
OTHER_AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)

YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
TOMORROW = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)


def contexts(
    *names: str,
    authority: trustme.CA = AUTHORITY,
    trusted: trustme.CA = AUTHORITY,
    not_before: datetime.datetime = YESTERDAY,
    not_after: datetime.datetime = TOMORROW,
    check_hostname: bool = True,
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Accepting and dialing side of a peer on loopback with a certificate for these names."""
    certificate = authority.issue_cert(
        *(names or ("peer",)),
        "127.0.0.1",
        "::1",
        "localhost",
        not_before=not_before,
        not_after=not_after,
        key_type=trustme.KeyType.ECDSA,
    )
    pair = anonymous_contexts(trusted)
    for context in pair:
        certificate.configure_cert(context)
    pair[1].check_hostname = check_hostname
    return pair


def anonymous_contexts(trusted: trustme.CA = AUTHORITY) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A pair of contexts that ask for a certificate, and have none to show."""
    accepting, dialing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    accepting.verify_mode = ssl.CERT_REQUIRED
    for context in (accepting, dialing):
        trusted.configure_trust(context)
    return accepting, dialing


def single_context() -> ssl.SSLContext:
    """One context for both sides; Python deprecates its protocol, and has no other one that does both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS)
    context.verify_mode = ssl.CERT_REQUIRED
    AUTHORITY.configure_trust(context)
    AUTHORITY.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA).configure_cert(context)
    return context
