"""kombu over SQLite: its SQLAlchemy transport."""

from __future__ import annotations

import kombu

from benchmarks.stores import kombu_works
from benchmarks.stores.sqlite import Stage


class Works(kombu_works.Works):
    """The works of kombu in a file of its own."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(stage.of(kombu, "sqla+"), stage)
