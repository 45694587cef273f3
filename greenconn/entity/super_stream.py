"""A super stream: streams that share the messages of one name between them, each key in one of them.

RabbitMQ's own tools and the clients of its stream protocol know super streams by their layout, which
is this: a direct exchange, and the streams ``name-0``, ``name-1``... bound to it by their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from greenconn.entity.exchange import Exchange
from greenconn.entity.queue import Queue

if TYPE_CHECKING:
    from greenconn.abc import Channel

#: The hash of a key begins with it in all clients, so that they agree where the key belongs.
SEED: Final = 104729
_MASK: Final = 0xFFFFFFFF


class SuperStream:
    """Streams that share the messages of one name between them.

    Messages of one key are in one stream, in their order.  The number of streams cannot change later:
    keys would go to other ones.

    Arguments:
        name: of the exchange, and the beginning of the streams' names.
        partitions: number of streams.
        queue_arguments: of each stream, such as ``{"x-max-age": "7D"}``.

    Attributes:
        exchange: the exchange to which the streams are bound by their numbers.
        streams: one :class:`Queue` for each partition.
    """

    __slots__ = ("exchange", "name", "streams")

    def __init__(
        self, name: str, partitions: int = 3, *, queue_arguments: Mapping[str, Any] | None = None
    ) -> None:
        if not name:
            raise ValueError("name of a super stream must not be empty")
        if isinstance(partitions, bool) or not isinstance(partitions, int) or partitions < 1:
            raise ValueError(
                f"partitions of super stream {name!r} must be a positive integer, got {partitions!r}"
            )
        self.name = name
        self.exchange = Exchange(name, type="direct", arguments={"x-super-stream": True})
        self.streams = tuple(
            Queue(
                f"{name}-{number}",
                exchange=self.exchange,
                routing_key=str(number),
                binding_arguments={"x-stream-partition-order": number},
                queue_arguments={**(queue_arguments or {}), "x-queue-type": "stream"},
            )
            for number in range(partitions)
        )

    def __repr__(self) -> str:
        return f"<SuperStream {self.name!r} of {len(self.streams)} streams>"

    def stream_of(self, key: str | bytes) -> Queue:
        """Return the stream for the messages of *key*, as all clients compute it.  Never switches."""
        data = key.encode() if isinstance(key, str) else key
        return self.streams[murmur3_32(data, SEED) % len(self.streams)]

    def declare(self, channel: Channel) -> None:
        """Declare the exchange and the streams, and bind them.  May switch."""
        for stream in self.streams:
            stream(channel).declare()

    def delete(self, channel: Channel) -> None:
        """Delete the streams with their messages, and the exchange.  May switch."""
        for stream in self.streams:
            stream(channel).delete()
        self.exchange(channel).delete()


def murmur3_32(data: bytes, seed: int) -> int:
    """Return the hash of *data* by MurmurHash3 (x86, 32 bits).  Never switches."""
    result = seed
    tail = len(data) & ~3
    for start in range(0, tail, 4):
        result ^= _scrambled(int.from_bytes(data[start : start + 4], "little"))
        result = (_rotated(result, 13) * 5 + 0xE6546B64) & _MASK
    result ^= _scrambled(int.from_bytes(data[tail:], "little")) ^ len(data)
    result = ((result ^ result >> 16) * 0x85EBCA6B) & _MASK
    result = ((result ^ result >> 13) * 0xC2B2AE35) & _MASK
    return result ^ result >> 16


def _scrambled(block: int) -> int:
    return (_rotated((block * 0xCC9E2D51) & _MASK, 15) * 0x1B873593) & _MASK


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> 32 - by) & _MASK
