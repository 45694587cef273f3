"""What is measured over a store: the rows of its table."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.works import Budget, Figure, Work, cpu

#: At most half of what kombu costs.
HALF = Budget(0.5, "kombu")

WORKS: dict[str, Work] = {
    "publish": Work(figures=(cpu("publish, one greenlet", None),), divisor=20),
    "publish_many": Work(figures=(cpu("publish, 1,000 greenlets", HALF),), divisor=10, least=1000),
    "consume": Work(figures=(cpu("consume, prefetch 100, ack each", HALF),), divisor=20),
}

#: What is measured where the store is a table of a database: more, and with so many messages that what
#: is done once (a greenlet's start, a first statement) is a small part, as at RabbitMQ.
TABLE_WORKS: dict[str, Work] = {
    "publish": replace(WORKS["publish"], divisor=5),
    "publish_exchange": Work(
        figures=(cpu("publish to an exchange, one greenlet", HALF),), divisor=5
    ),
    "publish_200": Work(figures=(cpu("publish, 200 greenlets", HALF),), least=200),
    "publish_many": replace(WORKS["publish_many"], divisor=1),
    "consume": replace(WORKS["consume"], divisor=2),
    "queues": Work(
        figures=(cpu("1,000 queues consumed in one process", HALF),), least=1000, warm_up=0
    ),
    "fan_out": Work(
        figures=(cpu("each message to 200 queues, consumed in one process", HALF),), least=200
    ),
    "latency": Work(
        figures=(
            Figure("p50", "idle consumer: sender to handler, p50", "ms"),
            Figure("p99", "the same, p99", "ms"),
        ),
        divisor=50,
        warm_up=0,
    ),
    "idle": Work(
        figures=(Figure("core", "idle consumer", "% of a core"),), divisor=10_000, warm_up=0
    ),
}


#: What is measured where nothing leaves the process.
MEMORY_WORKS: dict[str, Work] = {
    name: replace(WORKS[name], divisor=1) for name in ("publish", "publish_many", "consume")
}

_STATEMENTS: dict[str, Figure] = {
    "consume": Figure("statements", "the same: statements", "a message"),
    "queues": Figure("statements", "the same: statements", "a message"),
    "fan_out": Figure("statements", "the same: statements", "a message"),
    "idle": Figure("statements", "the same: statements", "a minute"),
}
#: Where the server counts its statements.
POSTGRESQL_WORKS: dict[str, Work] = {
    name: replace(work, figures=(*work.figures, _STATEMENTS[name])) if name in _STATEMENTS else work
    for name, work in TABLE_WORKS.items()
}
