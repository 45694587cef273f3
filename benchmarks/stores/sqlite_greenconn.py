"""greenconn over SQLite."""

from __future__ import annotations

import greenconn
from benchmarks.stores import greenconn_works
from benchmarks.stores.sqlite import Stage


class Works(greenconn_works.Works):
    """The works of greenconn in a file of its own."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(stage.of(greenconn), stage)
