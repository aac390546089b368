"""Addresses as people write them."""

from __future__ import annotations

import pytest

from replikv.errors import ConfigurationError
from replikv.transport.addresses import Address, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:7001", Address("10.0.0.1", 7001)),
        ("localhost:1", Address("localhost", 1)),
        ("db1.example.org:65535", Address("db1.example.org", 65535)),
        ("under_score:7001", Address("under_score", 7001)),
        ("bücher.example:7001", Address("bücher.example", 7001)),
        ("[::1]:7001", Address("::1", 7001)),
        ("[2001:DB8:0::1]:7001", Address("2001:db8::1", 7001)),
        ("[fe80::1%eth0]:7001", Address("fe80::1%eth0", 7001)),
    ],
)
def test_parses(text: str, expected: Address) -> None:
    """Names, IPv4, and IPv6 in brackets."""
    assert expected == parse_address(text)


@pytest.mark.parametrize("text", ["10.0.0.1:7001", "name:1", "[::1]:7001", "[fe80::1%eth0]:80"])
def test_formats_back(text: str) -> None:
    """An address reads as it was written, brackets included."""
    assert text == str(parse_address(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks a host or a port"),
        ("localhost", "lacks a host or a port"),
        ("0.0.0.0:7001", "nobody can dial it.* listen='0.0.0.0:7001'"),
        ("[::]:7001", "nobody can dial it"),
        ("[0:0::0]:7001", "nobody can dial it"),
        (":7001", "lacks a host or a port"),
        ("localhost:", "no number"),
        ("localhost:http", "no number"),
        ("localhost:-1", "no number"),
        ("localhost:+1", "no number"),
        ("localhost:٧", "no number"),
        ("localhost:0", "1 to 65535"),
        ("localhost:65536", "1 to 65535"),
        ("localhost:99999999999999999999", "1 to 65535"),
        ("::1:7001", "without brackets"),
        ("[::1", "without brackets"),
        ("[10.0.0.1]:7001", "no IPv6 address"),
        ("[]:7001", "no IPv6 address"),
        ("[::g]:7001", "no IPv6 address"),
        ("http://db:7001", "without brackets"),
        ("user@db:7001", "no host name"),
        ("a b:7001", "no host name"),
        ("a\0b:7001", "no host name"),
        ("a..b:7001", "DNS"),
        ("a" * 64 + ":7001", "DNS"),
    ],
)
def test_refuses(text: str, words: str) -> None:
    """Whatever is none is refused where it is given, not at some later dial."""
    with pytest.raises(ConfigurationError, match=words):
        parse_address(text)


def test_port_zero_is_for_listening() -> None:
    """Any free port can be listened on, and not dialed."""
    assert Address("127.0.0.1", 0) == parse_address("127.0.0.1:0", listening=True)
    with pytest.raises(ConfigurationError, match="out of range"):
        parse_address("127.0.0.1:0")
