"""greenconn over a store."""

from __future__ import annotations

import greenconn.pools
from benchmarks.clock import Figures
from benchmarks.stage import BODY
from benchmarks.stores.api import StoreApi
from benchmarks.stores.stage import StoreStage


class Works(StoreApi):
    """The works of greenconn."""

    def __init__(self, url: str, stage: StoreStage) -> None:
        super().__init__(greenconn, url, stage)

    def _publish_by(self, greenlets: int, count: int) -> Figures:
        """All share one producer."""
        with greenconn.Connection(self.url) as connection:
            sink = self.sink(connection)
            producer = connection.Producer()
            return self._timed_publish(
                greenlets, count, lambda: producer.publish(BODY, routing_key=sink)
            )
