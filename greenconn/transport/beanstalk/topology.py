"""Exchanges and bindings as records in a server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from greenconn.broker.topology_port import Facts, Row, TopologyStore
from greenconn.transport.beanstalk.records import EXCHANGES, Content, Records

__all__ = ["BeanstalkTopology"]


class BeanstalkTopology(TopologyStore):
    """One record for each exchange: what it is, and the rows of its bindings."""

    def __init__(self, records: Records) -> None:
        self._records = records
        #: Exchange -> the content of its record, and the rows in it.
        self._rows: dict[str, tuple[Content, Sequence[Row]]] = {}

    def _tube(self, exchange: str) -> bytes:
        return self._records.tube(EXCHANGES, exchange)

    def get(self, exchange: str) -> Facts | None:
        return self._records.read(self._tube(exchange))

    def put(self, exchange: str, facts: Facts) -> None:
        def declare(content: Content) -> Content | None:
            # One that somebody has bound to before has no facts.
            return None if "type" in content else {"rows": [], **content, **facts}

        tube = self._tube(exchange)
        if declare(self._records.make(tube, {**facts, "rows": []})) is not None:
            self._records.change(tube, declare)

    def delete(self, exchange: str) -> None:
        self._rows.pop(exchange, None)
        self._records.drop(self._tube(exchange))

    def rows(self, exchange: str) -> Sequence[Row] | None:
        content = self._records.read(self._tube(exchange))
        if content is None:
            self._rows.pop(exchange, None)
            return None
        known = self._rows.get(exchange)
        if known is None or known[0] is not content:
            rows = tuple(filter(None, map(_row, _rows(content))))
            known = self._rows[exchange] = (content, rows)
        return known[1]

    def add(self, exchange: str, row: Row) -> None:
        text = _text(row)

        def add(content: Content) -> Content | None:
            rows = _rows(content)
            return None if text in rows else {**content, "rows": [*rows, text]}

        self._records.change(self._tube(exchange), add)

    def remove(self, exchange: str, row: Row) -> bool:
        text = _text(row)
        return self._remove(exchange, lambda each: bool(each == text))

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        def leads_there(text: Any) -> bool:
            row = _row(text)
            return row is not None and (row.queue, row.to_exchange) == (destination, is_exchange)

        names = self._records.names(EXCHANGES)
        return [each for each in names if self._remove(each, leads_there)]

    def _remove(self, exchange: str, condition: Callable[[Any], bool]) -> bool:
        """Remove rows from a record; return whether it had such."""
        tube = self._tube(exchange)
        content = self._records.read(tube)
        if content is None or not any(map(condition, _rows(content))):
            return False
        self._records.change(tube, _without(condition))
        return True


def _without(condition: Callable[[Any], bool]) -> Callable[[Content], Content | None]:
    def remove(content: Content) -> Content | None:
        rows = _rows(content)
        kept = [each for each in rows if not condition(each)]
        return None if len(kept) == len(rows) else {**content, "rows": kept}

    return remove


def _rows(content: Content) -> list[Any]:
    rows = content.get("rows")
    return rows if isinstance(rows, list) else []


def _text(row: Row) -> list[Any]:
    """Return a row as JSON keeps it."""
    arguments = dict(row.arguments) if row.arguments else None
    return [row.routing_key, row.pattern, row.queue, arguments, row.to_exchange]


def _row(text: Any) -> Row | None:
    """Return the row that JSON kept; None: it is none."""
    if not isinstance(text, list) or len(text) != 5:
        return None
    return Row(*text)
