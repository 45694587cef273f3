"""kombu over a store, in a process that gevent has patched."""

from __future__ import annotations

import kombu
import kombu.pools

from benchmarks.stores.api import StoreApi
from benchmarks.stores.stage import StoreStage


class Works(StoreApi):
    """The works of kombu, where a connection is one greenlet's at a time."""

    def __init__(self, url: str, stage: StoreStage) -> None:
        super().__init__(kombu, url, stage)
