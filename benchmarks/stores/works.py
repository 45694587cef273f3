"""What is measured over a store: the rows of its table."""

from __future__ import annotations

from benchmarks.works import Budget, Work, cpu

#: At most half of what kombu costs.
HALF = Budget(0.5, "kombu")

WORKS: dict[str, Work] = {
    "publish": Work(figures=(cpu("publish, one greenlet", None),), divisor=20),
    "publish_many": Work(figures=(cpu("publish, 1,000 greenlets", HALF),), divisor=10, least=1000),
    "consume": Work(figures=(cpu("consume, prefetch 100, ack each", HALF),), divisor=20),
}
