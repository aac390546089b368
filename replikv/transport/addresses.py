"""Addresses of peers as people write them: ``host:port``, with an IPv6 address in brackets."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

from replikv.errors import ConfigurationError

__all__ = ["Address", "parse_address"]

PORT_MAX: Final = 65535
EXPECTED: Final = "expected host:port, such as 10.0.0.1:7001, db1.example.org:7001 or [2001:db8::1]:7001"

ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104  # what is refused here


class Address(NamedTuple):
    """Where to dial or listen: a name or an IP address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, *, listening: bool = False) -> Address:
    """Host and port of an address. ``listening`` allows port 0: whichever is free.

    Raises ConfigurationError, which says what is expected. A name is not resolved here: it may mean another machine
    the next time it is dialed.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ConfigurationError(f"address {text!r} lacks a host or a port: {EXPECTED}")
    if not (port_text.isascii() and port_text.isdigit()):
        raise ConfigurationError(f"address {text!r} has the port {port_text!r}, which is no number: {EXPECTED}")
    port = int(port_text) if len(port_text) <= len(str(PORT_MAX)) else PORT_MAX + 1
    if not (0 if listening else 1) <= port <= PORT_MAX:
        raise ConfigurationError(
            f"address {text!r} has a port out of range: {'0 (any free one)' if listening else 1} to {PORT_MAX}"
        )
    bracketed = host.startswith("[") and host.endswith("]")
    address = Address(_ipv6(text, host[1:-1]) if bracketed else _name(text, host), port)
    if not listening and address.host in ANY_HOST:
        raise ConfigurationError(
            f"address {text!r} stands for all interfaces of whoever binds it, so nobody can dial it: give the address"
            f" that others reach this peer by, and listen={text!r}"
        )
    return address


def _ipv6(text: str, host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError as exc:
        raise ConfigurationError(f"address {text!r} has no IPv6 address in its brackets ({exc}): {EXPECTED}") from exc


def _name(text: str, host: str) -> str:
    if ":" in host:
        raise ConfigurationError(f"address {text!r} has an IPv6 address without brackets: {EXPECTED}")
    if not host.isprintable() or any(character in " /@[]?#" for character in host):
        raise ConfigurationError(f"address {text!r} has characters that no host name has: {EXPECTED}")
    try:
        host.encode("idna")  # what getaddrinfo does first; its UnicodeError would surface at some later dial
    except UnicodeError as exc:
        raise ConfigurationError(f"address {text!r} has a host name that DNS cannot hold ({exc}): {EXPECTED}") from exc
    return host
