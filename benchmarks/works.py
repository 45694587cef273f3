"""What is measured: the rows of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Budget:
    """What greenconn may cost at most: a figure, or so many times a rival's in the same run."""

    at_most: float
    of: str | None = None

    def limit(self, rivals: dict[str, float]) -> float | None:
        """The figure, given those of the rivals; None: unknown without that rival."""
        if self.of is None:
            return self.at_most
        return self.at_most * rivals[self.of] if self.of in rivals else None

    def __str__(self) -> str:
        return f"{self.at_most:g}" if self.of is None else f"{self.at_most:.2g} x {self.of}"


@dataclass(frozen=True)
class Figure:
    """One row."""

    key: str  #: of the measurement's figures
    title: str
    unit: str
    budget: Budget | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each library does, in a process of its own."""

    figures: tuple[Figure, ...]
    #: The messages are the count of the command line divided by this, but never fewer than ``least``.
    divisor: int = 1
    least: int = 1
    #: Messages before the measurement, so that caches and imports are warm, are this share of it.
    warm_up: float = 0.1

    def count(self, messages: int) -> int:
        """Messages to measure."""
        return max(self.least, messages // self.divisor)


def cpu(title: str, budget: Budget | float | None, unit: str = "us") -> Figure:
    """The row of CPU time."""
    if isinstance(budget, float):
        budget = Budget(budget)
    return Figure("cpu", title, unit, budget)


WORKS: dict[str, Work] = {
    "publish": Work(figures=(cpu("publish, one greenlet", 3.4),)),
    "publish_headers": Work(figures=(cpu("publish with 16 headers", Budget(0.25, "kombu")),)),
    "confirmed": Work(
        figures=(
            Figure("p50", "confirmed publish, one at a time, p50 latency", "us", Budget(100)),
            cpu("confirmed publish, one at a time", 38.0),
        ),
        divisor=5,
    ),
    "confirmed_shared": Work(
        figures=(cpu("confirmed publish, 100 greenlets sharing one Producer", 10.0),)
    ),
    "publish_pool": Work(
        figures=(
            cpu("publish, 1,000 greenlets through a pool of 10", 7.5),
            Figure("p99", "the same, p99 latency with the wait for a producer", "ms"),
        ),
        least=1000,
    ),
    "acquire": Work(figures=(cpu("acquire and release a connection of a pool", 0.7),)),
    "consume": Work(figures=(cpu("consume, prefetch 100, ack each", 5.8),)),
    "consume_headers": Work(
        figures=(cpu("the same with 16 headers, which the program reads", Budget(0.25, "kombu")),)
    ),
    "consume_no_ack": Work(figures=(cpu("consume, no ack", 7.0),)),
    "spawned": Work(figures=(cpu("``spawn_consumer``, concurrency 100", 12.0),)),
    "typed": Work(
        figures=(
            cpu("``spawn_consumer``, a dataclass as body", 14.0),
            Figure("ratio", "the same, beside ``Body(**body)`` in the handler", "x", Budget(1.15)),
        ),
        divisor=4,
    ),
    "consumers": Work(
        figures=(
            cpu("1,000 consumers on 1,000 queues, one connection", 11.0),
            Figure("memory", "memory of an idle one of them", "KiB", Budget(9)),
        ),
        warm_up=0,
    ),
    "rpc": Work(figures=(cpu("RPC over a reply queue, 1 greenlet", 48.0),), divisor=5),
    "rpc_shared": Work(figures=(cpu("RPC over a reply queue, 100 greenlets", 18.0),), divisor=2),
    "large_publish": Work(
        figures=(cpu("publish 1 MiB bodies", Budget(1.6, "raw"), "us/MiB"),), divisor=100
    ),
    "large_consume": Work(
        figures=(cpu("consume 1 MiB bodies", Budget(0.25, "kombu"), "us/MiB"),), divisor=100
    ),
    "latency": Work(
        figures=(Figure("p50", "idle consumer: sender to handler, p50", "us", Budget(500)),),
        divisor=50,
    ),
    "connect": Work(
        figures=(cpu("connect and close", Budget(0.7, "kombu")),), divisor=100, least=5
    ),
    "import": Work(
        figures=(Figure("cpu", "import until AMQP can be used", "ms", Budget(45)),),
        divisor=2000,
        warm_up=0,
    ),
}


#: Percent of saturation.
LOADS: Final = (50, 80, 95)
#: The part of all latencies that are no longer, by the name of the row.
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "longest": 1.0}


def _under_load(title: str) -> tuple[Figure, ...]:
    """The rows of what ``benchmarks.rivals.load`` measures."""
    return (
        Figure("rate", f"{title}: saturation", "1/s"),
        *(
            Figure(f"{name}_{load}", f"{title} at {load} % of that: {name}", "ms")
            for load in LOADS
            for name in QUANTILES
        ),
        *(Figure(f"{name}_same", f"{title}, 2,000 a second: {name}", "ms") for name in QUANTILES),
    )


#: What is measured over TLS, too.
TLS_WORKS: dict[str, Work] = {
    name: WORKS[name]
    for name in (
        *("publish", "confirmed", "confirmed_shared", "consume", "spawned", "consumers"),
        *("rpc", "rpc_shared", "large_publish", "large_consume", "connect"),
    )
}
#: Latency while calls or messages come at a rate.
LOAD_WORKS: dict[str, Work] = {
    "loaded_publish": Work(figures=_under_load("publish with confirm")),
    "loaded_delivery": Work(figures=_under_load("delivery")),
}
