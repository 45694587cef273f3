"""Exchanges and bindings in a database, beside those that programs of kombu keep there.

Bindings of queues to direct, topic and fan-out exchanges are rows of kombu's.  Others (of headers
exchanges, and between exchanges) kombu would misread: they are kept with the exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import Any, Final

from greenconn.broker.topology_port import ExchangeRecord, Row, TopologyStore
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.mongodb.client import Client
from greenconn.transport.mongodb.documents import EXPIRE_AT, Document
from greenconn.transport.mongodb.fanout import PREFIX, Broadcast
from greenconn.transport.mongodb.options import MongoOptions
from greenconn.transport.virtual.entities import PREDECLARED

#: Exchange types whose bindings of queues kombu can read.
_KOMBU_TYPES: Final = frozenset({"direct", "topic", "fanout"})
#: What the notes of a client keep bindings, and types of exchanges, under.
_ROWS: Final = "rows"
_KINDS: Final = "kinds"


class MongoTopology(TopologyStore):
    """The records of one database.

    Arguments:
        client: the servers.
        options: names of the collections.
        broadcast: listens for the queues that are bound to fan-out exchanges here.
        user: what listens there.
        wake: called with a queue that a broadcast has come for.
    """

    def __init__(
        self,
        client: Client,
        options: MongoOptions,
        broadcast: Broadcast,
        user: object,
        wake: Callable[[str | None], None],
    ) -> None:
        self._client = client
        self._options = options
        self._broadcast = broadcast
        self._user = user
        self._wake = wake
        self._queues: Any = client.database[options.queues_collection]
        self._routing: Any = client.database[options.routing_collection]
        self._exchanges: Any = client.database[options.exchanges_collection]
        #: Exchange -> when it was read, and the rows; shared by all connections of the hub.
        self._rows: dict[str, tuple[float, tuple[Row, ...] | None]]
        self._rows = client.notes.setdefault(_ROWS, {})
        #: Exchange -> its type; the same.
        self._kinds: dict[str, str] = client.notes.setdefault(_KINDS, {})
        #: Fan-out exchange -> its rows, and those that stand for them.
        self._broadcasts: dict[str, tuple[Sequence[Row], tuple[Row, ...]]] = {}

    # -- exchanges

    def get(self, exchange: str) -> ExchangeRecord | None:
        found: Document | None = self._client.call(self._exchanges.find_one, {"_id": exchange})
        if found is None:
            return self._guess(exchange)
        self._kinds[exchange] = found.get("type") or "direct"
        return {**found, "arguments": _table(found.get("arguments"))}

    def _guess(self, exchange: str) -> ExchangeRecord | None:
        """Return what an exchange looks like that only programs of kombu have declared."""
        if not self._client.call(self._routing.find_one, {"exchange": exchange}, {"_id": 1}):
            return None
        patterned = {"exchange": exchange, "pattern": {"$nin": [None, ""]}}
        has_patterns = self._client.call(self._routing.find_one, patterned, {"_id": 1})
        return {"type": "topic" if has_patterns else "direct", "is_guess": True}

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        document = {**record, "arguments": dumps(record["arguments"])}
        update = {"$setOnInsert": document}
        self._client.call(self._exchanges.update_one, {"_id": exchange}, update, upsert=True)
        self._kinds[exchange] = record["type"]
        known = self._rows.get(exchange)
        if known is not None and known[1] is None:
            del self._rows[exchange]

    def delete(self, exchange: str) -> None:
        self._client.call(self._routing.delete_many, {"exchange": exchange})
        self._client.call(self._exchanges.delete_one, {"_id": exchange})
        self._rows.pop(exchange, None)
        self._kinds.pop(exchange, None)

    def _kind(self, exchange: str) -> str:
        """Return the type of an exchange; direct for one that was not declared."""
        kind = PREDECLARED.get(exchange) or self._kinds.get(exchange)
        if kind is None:
            self.get(exchange)
            kind = self._kinds.get(exchange, "direct")
        return kind

    # -- bindings

    def rows(self, exchange: str) -> Sequence[Row] | None:
        known = self._rows.get(exchange)
        now = monotonic()
        if known is None or now - known[0] >= self._options.routing_lifetime:
            rows = self._client.call(self._read, exchange)
            if known is not None and known[1] == rows:
                rows = known[1]  # the same object says that nothing has changed
            known = self._rows[exchange] = (now, rows)
        if not known[1] or self._options.fanout_lists or self._kind(exchange) != "fanout":
            return known[1]
        return self._broadcast_rows(exchange, known[1])

    def _read(self, exchange: str) -> tuple[Row, ...] | None:
        rows = [
            Row(each.get("routing_key") or "", each.get("pattern") or "", each["queue"])
            for each in self._routing.find({"exchange": exchange})
            if each.get("queue")
        ]
        document = self._exchanges.find_one({"_id": exchange})
        if document is None:
            return tuple(rows) or None
        for each in document.get("bindings", ()):
            key, pattern, arguments = loads(each["row"])
            rows.append(Row(key, pattern, each["to"], arguments, bool(each["is_exchange"])))
        return tuple(rows)

    def _broadcast_rows(self, exchange: str, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Return the rows of a fan-out exchange that is broadcast: one, for all its queues."""
        known = self._broadcasts.get(exchange)
        if known is not None and known[0] is rows:
            return known[1]
        onward = tuple(each for each in rows if each.to_exchange)
        one = () if len(onward) == len(rows) else (Row("", "", PREFIX + exchange),)
        self._broadcasts[exchange] = (rows, one + onward)
        return one + onward

    def add(self, exchange: str, row: Row) -> None:
        kind = self._kind(exchange)
        if row.to_exchange or kind not in _KOMBU_TYPES:
            self._change(exchange, "$addToSet", row)
        else:
            lookup = _lookup(exchange, row)
            data = dict(lookup)
            if self._options.ttl:
                # Where the queue expires, so does this.
                document = self._client.call(self._queues.find_one, {"_id": row.queue}) or {}
                data[EXPIRE_AT] = document.get(EXPIRE_AT)
            self._client.call(self._routing.update_one, lookup, {"$set": data}, upsert=True)
        self._rows.pop(exchange, None)
        if kind == "fanout" and not row.to_exchange and not self._options.fanout_lists:
            self._broadcast.listen(self._user, row.queue, exchange, self._wake)

    def remove(self, exchange: str, row: Row) -> bool:
        kind = self._kind(exchange)
        if row.to_exchange or kind not in _KOMBU_TYPES:
            count = self._change(exchange, "$pull", row)
        else:
            lookup = _lookup(exchange, row)
            count = self._client.call(self._routing.delete_many, lookup).deleted_count
        self._rows.pop(exchange, None)
        if kind == "fanout" and not row.to_exchange:
            self._broadcast.forget(row.queue, exchange)
        return bool(count)

    def _change(self, exchange: str, operator: str, row: Row) -> int:
        binding = {
            "to": row.queue,
            "is_exchange": row.to_exchange,
            # Names of arguments may be such as MongoDB keeps for itself.
            "row": dumps([row.routing_key, row.pattern, dict(row.arguments or {})]),
        }
        update = {operator: {"bindings": binding}}
        result = self._client.call(self._exchanges.update_one, {"_id": exchange}, update)
        return int(result.modified_count)

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        sources: list[str] = self._client.call(self._remove_to, destination, is_exchange)
        for each in sources:
            self._rows.pop(each, None)
        return sources

    def _remove_to(self, destination: str, is_exchange: bool) -> list[str]:
        sources: list[str] = []
        if not is_exchange:
            sources += self._routing.distinct("exchange", {"queue": destination})
            self._routing.delete_many({"queue": destination})
        gone = {"to": destination, "is_exchange": is_exchange}
        holding = {"bindings": {"$elemMatch": gone}}
        sources += self._exchanges.distinct("_id", holding)
        self._exchanges.update_many(holding, {"$pull": {"bindings": gone}})
        return sources

    def fanouts_of(self, queue: str) -> list[str]:
        """Return the fan-out exchanges that a queue is bound to.  May switch."""
        found: list[str] = self._client.call(self._fanouts_of, queue)
        return found

    def _fanouts_of(self, queue: str) -> list[str]:
        names = [each["exchange"] for each in self._routing.find({"queue": queue})]
        if not names:
            return []
        fanout = {"_id": {"$in": names}, "type": "fanout"}
        found = [each["_id"] for each in self._exchanges.find(fanout, {"_id": 1})]
        return found + [each for each in names if PREDECLARED.get(each) == "fanout"]


def _lookup(exchange: str, row: Row) -> Document:
    # For a key that is no pattern kombu stores None.
    return {
        "exchange": exchange,
        "queue": row.queue,
        "routing_key": row.routing_key,
        "pattern": row.pattern or None,
    }


def _table(text: Any) -> dict[str, Any]:
    try:
        table = loads(text)
    except (TypeError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
