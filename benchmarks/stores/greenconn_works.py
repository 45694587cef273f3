"""greenconn over a store."""

from __future__ import annotations

import greenconn.pools
from benchmarks.clock import Clock, Figures
from benchmarks.rivals.kombu_api import many
from benchmarks.stage import BODY
from benchmarks.stores.api import PUBLISHERS, StoreApi
from benchmarks.stores.stage import StoreStage


class Works(StoreApi):
    """The works of greenconn."""

    def __init__(self, url: str, stage: StoreStage) -> None:
        super().__init__(greenconn, url, stage)

    def publish_many(self, count: int) -> Figures:
        """All share one producer."""
        with greenconn.Connection(self.url) as connection:
            sink = self.sink(connection)
            producer = connection.Producer()
            with Clock() as clock:
                count = many(PUBLISHERS, count, lambda: producer.publish(BODY, routing_key=sink))
        return clock.per(count)
