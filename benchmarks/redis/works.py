"""What is measured on Redis: the rows of its table."""

from __future__ import annotations

from benchmarks.works import Budget, Figure, Work, cpu

#: At most a fifth of what kombu costs.
_FIFTH = Budget(0.2, "kombu")

WORKS: dict[str, Work] = {
    "publish": Work(figures=(cpu("publish that awaits its reply, one greenlet", 36.0),)),
    "publish_exchange": Work(figures=(cpu("publish to an exchange, one greenlet", _FIFTH),)),
    "publish_window": Work(figures=(cpu("the same with a window of 16 unanswered", 14.0),)),
    "publish_many": Work(
        figures=(
            cpu("publish, 1,000 greenlets", 12.0),
            Figure("p99", "publish, 1,000 greenlets, p99 latency", "ms", Budget(50)),
        ),
        least=1000,
    ),
    "publish_pool": Work(
        figures=(
            cpu("publish, 1,000 greenlets through a pool of 10", 12.0),
            Figure("p99", "the same, p99 latency with the wait for a producer", "ms"),
        ),
        least=1000,
    ),
    "consume": Work(figures=(cpu("consume, prefetch 100, ack each", 15.0),)),
    "queues": Work(
        figures=(cpu("1,000 queues consumed in one process", 18.0),), least=1000, warm_up=0
    ),
    "consumers": Work(
        figures=(cpu("the same by 1,000 times ``spawn_consumer``", None),), least=1000, warm_up=0
    ),
    "latency": Work(
        figures=(Figure("p50", "idle consumer: sender to handler, p50", "us", Budget(450)),),
        divisor=50,
    ),
    "idle": Work(
        figures=(Figure("core", "1,000 idle consumers", "% of a core", Budget(1)),),
        divisor=1000,
        warm_up=0,
    ),
}
