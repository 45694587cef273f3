"""PostgreSQL by hand: psycopg."""

from __future__ import annotations

import psycopg

from benchmarks.clock import Clock, Figures
from benchmarks.redis.envelopes import envelope
from benchmarks.rivals.shape import PREFETCH
from benchmarks.stage import BODY
from benchmarks.stores.by_hand import ByHand
from benchmarks.stores.postgresql import Stage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS by_hand (
    id bigserial PRIMARY KEY, queue text, claim bigint, envelope bytea);
CREATE INDEX IF NOT EXISTS by_hand_waiting ON by_hand (queue, id) WHERE claim IS NULL;
"""
_PUT = "INSERT INTO by_hand (queue, envelope) SELECT * FROM unnest(%b::text[], %b::bytea[])"
_CLAIM = (
    "UPDATE by_hand SET claim = 1 WHERE id IN (SELECT id FROM by_hand WHERE queue = %b AND claim "
    f"IS NULL ORDER BY id LIMIT {PREFETCH} FOR UPDATE SKIP LOCKED) RETURNING id, envelope"
)


class Works(ByHand):
    """What psycopg takes for a message, if nobody asks for anything else: prepared, and in binary."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(stage)
        self._database = psycopg.connect(stage.of(psycopg, url), autocommit=True)
        self._database.execute(_SCHEMA)
        self._cursor = self._database.cursor(binary=True)

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def put(self, queue: str, count: int, at_once: int) -> Clock:
        values = ([queue] * at_once, [envelope(BODY, queue)] * at_once)
        with Clock() as clock:
            for _ in range(0, count, at_once):
                self._cursor.execute(_PUT, values, prepare=True)
        return clock

    def consume(self, count: int) -> Figures:
        """Two statements for a hundred."""
        source = self.stage.name()
        self.put(source, count, PREFETCH)
        with Clock() as clock:
            for _ in range(0, count, PREFETCH):
                self._cursor.execute(_CLAIM, (source,), prepare=True)
                keys = [number for number, _ in self._cursor.fetchall()]
                self._cursor.execute(
                    "DELETE FROM by_hand WHERE id = ANY (%b)", (keys,), prepare=True
                )
        return clock.per(count)
