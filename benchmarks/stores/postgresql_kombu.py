"""kombu over PostgreSQL: its SQLAlchemy transport."""

from __future__ import annotations

import kombu

from benchmarks.stores import kombu_works
from benchmarks.stores.postgresql import Stage


class Works(kombu_works.Works):
    """The works of kombu in tables of its own."""

    def __init__(self, url: str, stage: Stage) -> None:
        place = url.partition("://")[2]
        super().__init__(stage.of(kombu, f"sqla+postgresql+psycopg://{place}"), stage)
