"""What both frameworks' parsers would never come back from, is not given to them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps import framework
from apps.framework_base import PARSERS, module, plain_hello
from controller.act.dataplane.openflow import wire


def hello(*elements: bytes, version: int = 6) -> bytes:
    """A hello with its elements padded as the specification wants it."""
    body = b"".join(e + bytes(-len(e) % 8) for e in elements)
    return wire.HEADER.pack(version, wire.HELLO, 8 + len(body), 7) + body


def bitmap(*words: int) -> bytes:
    """An element that names versions."""
    return struct.pack(f">HH{len(words)}I", 1, 4 + 4 * len(words), *words)


class Connection:
    """What the parsers want of a connection."""

    address = ("192.0.2.1", 1)
    closed = False

    def close(self) -> None:
        self.closed = True


def parse(data: bytes) -> tuple[object, Connection]:
    connection = Connection()
    version, kind, length, xid = wire.HEADER.unpack_from(data)
    return PARSERS[version](connection, version, kind, length, xid, data), connection


@pytest.mark.parametrize("version", [1, 4, 5, 6])
def test_padding_is_understood(version: int) -> None:
    """Two words and four bytes of padding, in which the frameworks see an element of length 0."""
    data = hello(bitmap(1 << 4 | 1 << 6, 0), bitmap(1 << 6), version=version)
    message, connection = parse(data)
    if version >= 4:
        versions = [v for element in message.elements for v in element.versions]  # type: ignore[attr-defined]
        assert versions == [4, 6, 6]
    assert not connection.closed


@pytest.mark.parametrize("version", [1, 4, 5, 6])
@pytest.mark.parametrize(
    "element", [bytes(4), b"\0\1\0\3", b"\0\1\0\x09", b"\0\1\0", b"\0\1\xff\xff" + bytes(4)]
)
def test_an_element_of_a_wrong_length_ends_the_connection(
    version: int, element: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    data = wire.HEADER.pack(version, wire.HELLO, 8 + len(element), 1) + element
    message, connection = parse(data)
    assert message is None
    assert connection.closed
    assert "hello: an element of" in caplog.text


@given(st.binary(max_size=200))
def test_a_hello_is_plain_or_refused(body: bytes) -> None:
    data = wire.HEADER.pack(6, wire.HELLO, 8 + len(body), 1) + body
    try:
        plain = plain_hello(data)
    except wire.Malformed:
        return
    assert len(plain) <= len(data)
    assert wire.HEADER.unpack_from(plain)[2] == len(plain)
    # Without padding there is nothing to skip: it stays as it is, if each is 8 bytes long.
    at = 8
    while at < len(plain):
        length = wire.PROPERTY.unpack_from(plain, at)[1]
        assert length >= 4
        at += length
    assert at == len(plain)


@pytest.mark.parametrize("version", ["ofproto_v1_4", "ofproto_v1_5"])
def test_a_property_without_a_length_is_refused(version: str) -> None:
    port = module(f"ofproto.{version}_parser").OFPPort
    head = struct.pack(">IHxx6sxx16sII", 1, 48, bytes(6), b"eth1", 0, 0)
    with pytest.raises(ValueError):
        port.parser(head + bytes(8), 0)


def test_a_port_may_change_before_the_switch_has_told_its_ports() -> None:
    told = []

    class Young:
        """A connection of which nothing is known yet."""

        address = ("192.0.2.1", 6653)

        def close(self) -> None:
            told.append("closed")

    changed = wire.HEADER.pack(framework.VERSION, wire.PORT_STATUS, 88, 0) + struct.pack(
        "!B7xIH2x6s2x16sII", 2, 1, 72, bytes(6), b"eth1", 0, 4
    )
    changed += struct.pack("!HH4xIIIIII", 0, 32, 0, 0, 0, 0, 10_000, 0)
    message = framework._parse(Young(), framework.VERSION, wire.PORT_STATUS, 88, 0, changed)
    assert (message.desc.port_no, told) == (1, [])
