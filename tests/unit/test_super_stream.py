"""Super streams: which key belongs to which stream."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from greenconn.entity.queue import SuperStream, murmur3_32

pytestmark = pytest.mark.pure

#: As published for the reference implementation, and by RabbitMQ.
VECTORS = [
    (b"", 0, 0),
    (b"", 1, 0x514E28B7),
    (b"", 0xFFFFFFFF, 0x81F16F39),
    (b"abc", 0, 0xB3DD93FA),
    (b"\xff\xff\xff\xff", 0, 0x76293B50),
    (b"\x21\x43\x65\x87", 0, 0xF55B516B),
    (b"\x21\x43\x65\x87", 0x5082EDEE, 0x2362F9DE),
    (b"\x21\x43\x65", 0, 0x7E4A8634),
    (b"\x21\x43", 0, 0xA0F7B07A),
    (b"\x21", 0, 0x72661CF4),
    (b"\0\0\0\0", 0, 0x2362F9DE),
    (b"\0\0\0", 0, 0x85F0B427),
    (b"aaaa", 0x9747B28C, 0x5A97808A),
    (b"abcd", 0x9747B28C, 0xF0478627),
    (b"Hello, world!", 0x9747B28C, 0x24884CBA),
    (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
    (b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 0, 0xEE925B90),
]


@pytest.mark.parametrize(("data", "seed", "expected"), VECTORS)
def test_the_hash_is_murmur3(data: bytes, seed: int, expected: int) -> None:
    assert murmur3_32(data, seed) == expected


def test_the_layout_is_that_of_rabbitmq() -> None:
    invoices = SuperStream("invoices", 2, queue_arguments={"x-max-age": "7D"})
    assert (invoices.exchange.name, invoices.exchange.type) == ("invoices", "direct")
    assert invoices.exchange.arguments == {"x-super-stream": True}
    for number, stream in enumerate(invoices.streams):
        assert stream.name == f"invoices-{number}"
        assert stream.routing_key == str(number)
        assert stream.binding_arguments == {"x-stream-partition-order": number}
        assert stream.queue_arguments == {"x-max-age": "7D", "x-queue-type": "stream"}
    assert repr(invoices) == "<SuperStream 'invoices' of 2 streams>"


def test_keys_are_spread_over_the_streams() -> None:
    invoices = SuperStream("invoices", 3)
    count = Counter(invoices.stream_of(f"customer {number}").name for number in range(3000))
    assert len(count) == 3
    assert min(count.values()) > 900
    assert invoices.stream_of("ä") is invoices.stream_of("ä".encode())


@pytest.mark.parametrize("partitions", [0, -1, 1.5, True, "3"])
def test_what_is_no_number_of_streams(partitions: Any) -> None:
    with pytest.raises(ValueError, match="must be a positive integer"):
        SuperStream("invoices", partitions)


def test_it_has_a_name() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        SuperStream("")
