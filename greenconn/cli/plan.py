"""The work of the demo, its progress and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The amount of work."""

    url: str = "memory://"
    messages: int = 400_000
    consumers: int = 1_000  #: greenlets made by ``spawn_consumer``
    queues: int = 100  #: shared evenly by the consumers
    publishers: int = 200  #: greenlets that publish
    connections: int = 10  #: in the pool that the publishers share
    burst: int = 20  #: messages that a publisher sends each time it has a connection
    window: int = 10_000  #: messages under way at most, so that latency means something
    size: int = 128  #: bytes of padding in each body
    stall_timeout: float = 30.0  #: seconds without progress after which the rest counts as lost
    #: Seconds between two cuts of a connection; None: they are left alone, and a lost one ends the work.
    cut_interval: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The progress of the work."""

    elapsed: float  #: seconds since the first publish; since the start while consumers start
    published: int
    handled: int
    rate: float  #: messages handled a second, over the last second or so
    latency: float  #: median of the latest messages, publish to handler, in seconds
    ready: int  #: consumers that the broker has confirmed
    sockets: int | None
    threads: int
    memory: int  #: bytes
    latencies: Sequence[float]  #: of the latest messages, in seconds
    rates: Sequence[int]  #: messages handled a second at the latest snapshots, this one at the end
    outages: int  #: connections that were lost
    duplicates: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The result of the work.  Messages in flight when the demo ended early are not counted as lost."""

    elapsed: float
    published: int
    handled: int  #: different messages
    lost: int
    in_flight: int  #: published and not handled when the demo ended early
    outages: int
    duplicates: int
    cpu: float  #: seconds of this process
    latencies: tuple[float, float]  #: median and 99th percentile, in seconds
    sockets: int | None
    threads: int
    peak_memory: int  #: bytes
