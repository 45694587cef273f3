"""Exchanges and their bindings, as all programs on one server share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from greenconn.broker.port import Row
from greenconn.transport.beanstalk.tables import EXCHANGES, Content, Tables
from greenconn.transport.virtual.exchange import ROUTERS
from greenconn.transport.virtual.state import Exchange

__all__ = ["Exchanges"]


class Exchanges:
    """One table for each exchange: what it is, and the rows of its bindings."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        #: Exchange -> the content of its table, and the rows in it.
        self._rows: dict[str, tuple[Content, Sequence[Row]]] = {}

    def _tube(self, name: str) -> bytes:
        return self._tables.tube(EXCHANGES, name)

    def note(self, exchange: Exchange) -> None:
        """An exchange was declared.  May switch."""
        facts = {
            "type": exchange.type,
            "durable": exchange.durable,
            "auto_delete": exchange.auto_delete,
            "arguments": dict(exchange.arguments),
        }

        def declare(content: Content) -> Content | None:
            if all(content.get(name) == value for name, value in facts.items()):
                return None
            return {"rows": [], **content, **facts}

        tube = self._tube(exchange.name)
        if declare(self._tables.make(tube, {**facts, "rows": []})) is not None:
            self._tables.change(tube, declare)

    def find(self, name: str) -> Exchange | None:
        """Return an exchange without its bindings; None: there is none.  May switch."""
        content = self._tables.read(self._tube(name))
        if content is None or content.get("type") not in ROUTERS:
            return None
        kind = content["type"]
        arguments = content.get("arguments")
        return Exchange(
            name,
            kind,
            ROUTERS[kind](),
            durable=bool(content.get("durable")),
            auto_delete=bool(content.get("auto_delete")),
            arguments=arguments if isinstance(arguments, dict) else {},
        )

    def drop(self, name: str) -> None:
        """Delete an exchange, and the bindings that begin or end there.  May switch."""
        self._rows.pop(name, None)
        self._tables.drop(self._tube(name))
        self._remove(lambda row: row.to_exchange and row.queue == name)

    def drop_queue(self, name: str) -> None:
        """Delete the bindings of a queue, and the exchanges that go with their last.  May switch."""
        self._remove(lambda row: not row.to_exchange and row.queue == name)

    def bind(self, exchange: str, row: Row) -> None:
        """Add a binding.  May switch."""
        text = _text(row)

        def add(content: Content) -> Content | None:
            rows = _rows(content)
            return None if text in rows else {**content, "rows": [*rows, text]}

        self._tables.change(self._tube(exchange), add)

    def unbind(self, exchange: str, row: Row) -> None:
        """Remove a binding.  May switch."""
        text = _text(row)
        tube = self._tube(exchange)
        content = self._tables.read(tube)
        if content is not None and text in _rows(content):
            self._tables.change(tube, _without(lambda each: each == text))

    def rows(self, name: str) -> Sequence[Row] | None:
        """The bindings of an exchange; the same object until they change.  May switch."""
        content = self._tables.read(self._tube(name))
        if content is None:
            self._rows.pop(name, None)
            return None
        known = self._rows.get(name)
        if known is None or known[0] is not content:
            rows = tuple(filter(None, map(_row, _rows(content))))
            known = self._rows[name] = (content, rows)
        return known[1]

    def _remove(self, condition: Callable[[Row], bool]) -> None:
        """Remove rows from all tables."""

        def matches(text: Any) -> bool:
            row = _row(text)
            return row is not None and condition(row)

        for name in self._tables.names(EXCHANGES):
            tube = self._tube(name)
            content = self._tables.read(tube)
            if content is None or not any(map(matches, _rows(content))):
                continue
            if content.get("auto_delete") and all(map(matches, _rows(content))):
                self.drop(name)
            else:
                self._tables.change(tube, _without(matches))


def _without(matches: Callable[[Any], bool]) -> Callable[[Content], Content | None]:
    def remove(content: Content) -> Content | None:
        rows = _rows(content)
        kept = [each for each in rows if not matches(each)]
        return None if len(kept) == len(rows) else {**content, "rows": kept}

    return remove


def _rows(content: Content) -> list[Any]:
    rows = content.get("rows")
    return rows if isinstance(rows, list) else []


def _text(row: Row) -> list[Any]:
    """A row as JSON keeps it."""
    arguments = dict(row.arguments) if row.arguments else None
    return [row.routing_key, row.pattern, row.queue, arguments, row.to_exchange]


def _row(text: Any) -> Row | None:
    """The row that JSON kept; None: it is none."""
    if not isinstance(text, list) or len(text) != 5:
        return None
    return Row(*text)
