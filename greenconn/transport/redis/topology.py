"""Exchanges and bindings in a server, beside those that programs of kombu keep there.

Bindings of queues are kombu's tables.  What kombu does not have here is ours: the declaration of an
exchange; the arguments of a binding of a headers exchange, as JSON where others have a pattern; and
bindings between exchanges, in sets of their own.  An exchange that only programs of kombu have declared
is known by its table alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Protocol

from greenconn.broker.directory import Directory
from greenconn.broker.routing import Routing
from greenconn.broker.topology_port import ExchangeRecord, Row, TopologyStore
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.scripts import BIND
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.state import BrokerState
from greenconn.wire.resp import pack

#: A table of bindings of expiring queues is kept for so many times their expiry, and for an hour at
#: least (kombu's figures).
EXPIRY_FACTOR: Final = 2
LEAST_EXPIRY_MS: Final = 3_600_000
#: Renewals in that time, where the queue is in use (kombu's figure).
RENEWALS: Final = 3


class TopologyLink(Protocol):
    """The link that reads the records."""

    commands: Commands

    @property
    def state(self) -> BrokerState: ...
    @property
    def routing(self) -> Routing: ...
    @property
    def directory(self) -> Directory: ...

    def is_broadcast(self, exchange: str) -> bool:
        """Return whether messages to an exchange are published to a channel.  Never switches."""


class LinkRecords(TopologyStore):
    """The records that a link reads."""

    @abstractmethod
    def table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return the rows of kombu's table: routing key, pattern, queue.  May switch."""

    @abstractmethod
    def bound_field(self, exchange: str, row: Row) -> bytes:
        """Return the field of a binding among those of its queue.  Never switches."""


class RedisTopology(LinkRecords):
    """The records of one partition, as one link reads them."""

    def __init__(self, link: TopologyLink) -> None:
        self._link = link
        #: Exchange -> what was read last, and the rows of that.
        self._read: dict[str, tuple[object, tuple[Row, ...]]] = {}
        #: Queue that expires -> when its bindings must be renewed, on the monotonic clock.
        self._renewed: dict[str, float] = {}

    # -- exchanges

    def get(self, exchange: str) -> ExchangeRecord | None:
        keys = self._link.commands.keys
        what = f"looking up exchange {exchange!r}"
        text = self._link.commands.call(pack(b"GET", keys.exchange(exchange)), what=what)
        if text is not None:
            record = _decoded(text)
            if isinstance(record.get("type"), str):
                return record
        table = self._table(exchange, what)
        if text is None and not table:
            return None
        has_patterns = any(keys.row(each)[1] for each in table)
        return {"type": "topic" if has_patterns else "direct", "is_guess": True}

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        command = pack(b"SET", self._link.commands.keys.exchange(exchange), dumps(record), b"NX")
        self._link.commands.call(command, what=f"declaring exchange {exchange!r}")

    def delete(self, exchange: str) -> None:
        link, keys = self._link, self._link.commands.keys
        table = self._table(exchange)
        names = (
            *(keys.exchange(exchange), keys.bindings(exchange)),
            *(keys.permanent_bindings(exchange), keys.onward(exchange)),
        )
        commands = [pack(b"DEL", *names), pack(b"ZREM", keys.binding_deadlines, exchange)]
        for member in table:
            field = keys.bound_field(exchange, member)
            commands.append(pack(b"HDEL", keys.bound(keys.row(member)[2]), field))
        link.commands.call_all(commands, what=f"deleting exchange {exchange!r}")
        self._read.pop(exchange, None)

    # -- bindings

    def rows(self, exchange: str) -> Sequence[Row] | None:
        link, keys = self._link, self._link.commands.keys
        onward = pack(b"SMEMBERS", keys.onward(exchange))
        table: Collection[Any]
        if link.is_broadcast(exchange):
            # The queues of other programs are not asked for: they listen by themselves.
            others, is_there = link.commands.call_all(
                [onward, pack(b"EXISTS", keys.exchange(exchange), keys.bindings(exchange))],
                what="routing",
            )
            table = tuple(link.routing.own_rows(exchange))
        else:
            others, table = link.commands.call_all(
                [onward, pack(b"SMEMBERS", keys.bindings(exchange))], what="routing"
            )
            is_there = others or table or exchange in PREDECLARED
        if not is_there and not link.commands.call(
            pack(b"EXISTS", keys.exchange(exchange)), what="routing"
        ):
            self._read.pop(exchange, None)
            return None
        what = (table, others)
        known = self._read.get(exchange)
        if known is None or known[0] != what:
            rows = [each if isinstance(each, Row) else self._row(each) for each in table]
            known = self._read[exchange] = (what, (*rows, *self.onward_rows(others)))
        return known[1]

    def rows_of(self, members: Iterable[bytes]) -> list[Row]:
        """Return the bindings that members of kombu's table are.  Never switches."""
        return [self._row(each) for each in members]

    def onward_rows(self, members: Iterable[bytes]) -> list[Row]:
        """Return the bindings of exchanges that members of such a set are.  Never switches."""
        return [each for each in map(_onward_row, members) if each is not None]

    def has_rows(self, exchange: str) -> bool:
        keys = self._link.commands.keys
        command = pack(b"EXISTS", keys.bindings(exchange), keys.onward(exchange))
        return bool(self._link.commands.call(command, what="routing"))

    def add(self, exchange: str, row: Row) -> None:
        link = self._link
        if row.to_exchange:
            self.add_onward(exchange, row)
            self.add_source(row.queue, exchange)
            return
        # The queue may have ended since the caller looked; a binding of none would stay for ever.
        while True:
            declared = link.directory.check(row.queue, Method.QUEUE_BIND)
            names, args = self._binding(exchange, row, declared)
            if link.commands.run(BIND, names, *args, what="binding") >= 0:
                return
            link.directory.forget(row.queue)

    def add_onward(self, exchange: str, row: Row) -> None:
        """Add the binding of another exchange to its source.  May switch."""
        commands = self._link.commands
        key = commands.keys.onward(exchange)
        commands.call(pack(b"SADD", key, _onward_member(row)), what="binding")

    def add_source(self, destination: str, exchange: str) -> None:
        """Note that *destination* was bound to an exchange.  May switch."""
        commands = self._link.commands
        commands.call(pack(b"SADD", commands.keys.sources(destination), exchange), what="binding")

    def _binding(
        self, exchange: str, row: Row, declared: Declaration
    ) -> tuple[tuple[bytes, ...], tuple[Any, ...]]:
        """Return keys and arguments of the script that adds a binding of a queue that is declared so."""
        keys = self._link.commands.keys
        member = self._member(exchange, row)
        expires_ms = declared.expires_ms
        if expires_ms is None:
            other, kept_ms = keys.permanent_bindings(exchange), ""
        else:
            other, kept_ms = keys.binding_deadlines, str(_kept_ms(expires_ms))
        names: tuple[bytes, ...] = (keys.bindings(exchange), other, keys.bound(row.queue))
        if declared is not UNDECLARED:
            names = (*names, keys.queue(row.queue))
        return names, (member, keys.bound_field(exchange, member), exchange, kept_ms)

    def remove(self, exchange: str, row: Row) -> bool:
        link, keys = self._link, self._link.commands.keys
        if row.to_exchange:
            commands = [pack(b"SREM", keys.onward(exchange), _onward_member(row))]
        else:
            member = self._member(exchange, row)
            commands = [
                *self._removal(exchange, member),
                pack(b"HDEL", keys.bound(row.queue), keys.bound_field(exchange, member)),
            ]
        return bool(link.commands.call_all(commands, what="unbinding")[0])

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        return self._leave_exchanges(destination) if is_exchange else self._leave(destination)

    def _leave(self, queue: str) -> Collection[str]:
        link, keys = self._link, self._link.commands.keys
        bound = link.commands.call(pack(b"HKEYS", keys.bound(queue)), what="unbinding")
        commands, exchanges = [pack(b"DEL", keys.bound(queue))], []
        for each in bound:
            exchange, member = each.split(b"\0", 1)
            exchanges.append(exchange.decode())
            commands += self._removal(exchanges[-1], member)
        link.commands.call_all(commands, what="unbinding")
        return exchanges

    def _removal(self, exchange: str, member: bytes) -> list[bytes]:
        """Return the commands that remove a binding of a queue from kombu's tables."""
        keys = self._link.commands.keys
        tables = (keys.bindings(exchange), keys.permanent_bindings(exchange))
        return [pack(b"SREM", table, member) for table in tables]

    def _leave_exchanges(self, destination: str) -> Collection[str]:
        sources = self.sources(destination)
        for each in sources:
            self.remove_onward(each, destination)
        self.forget_sources(destination)
        return sources

    def sources(self, destination: str) -> list[str]:
        """Return the exchanges that an exchange was bound to.  May switch."""
        commands = self._link.commands
        key = commands.keys.sources(destination)
        members = commands.call(pack(b"SMEMBERS", key), what="routing")
        return [each.decode() for each in members]

    def forget_sources(self, destination: str) -> None:
        """Forget what an exchange was bound to.  May switch."""
        commands = self._link.commands
        commands.call(pack(b"DEL", commands.keys.sources(destination)), what="unbinding")

    def remove_onward(self, exchange: str, destination: str) -> None:
        """Remove all bindings of another exchange to its source.  May switch."""
        commands = self._link.commands
        key = commands.keys.onward(exchange)
        rows = {
            each: _onward_row(each)
            for each in commands.call(pack(b"SMEMBERS", key), what="routing")
        }
        gone = [each for each, row in rows.items() if row and row.queue == destination]
        if gone:
            commands.call(pack(b"SREM", key, *gone), what="unbinding")

    def keep(self, queue: str, expires_ms: int) -> None:
        """Renew the bindings, known here, of an expiring queue that is in use.  Never switches.

        A program of kombu would remove the tables that are not renewed.
        """
        now = monotonic()
        if now < self._renewed.get(queue, 0.0):
            return
        link = self._link
        self._renewed[queue] = now + _kept_ms(expires_ms) / 1000 / RENEWALS

        def renewed(reply: Any) -> None:
            if isinstance(reply, Exception):
                self._renewed.pop(queue, None)
                link.commands.scripts.forget()  # they may have been flushed: with the next use

        declared = link.directory.last(queue)
        for exchange, row in link.routing.rows_to(queue):
            names, args = self._binding(exchange, row, declared)
            link.commands.pipeline.post(link.commands.scripts.call(BIND, names, *args), renewed)

    def ended(self, queue: str) -> None:
        """Forget a queue that is gone.  Never switches."""
        self._renewed.pop(queue, None)

    def table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return the rows of kombu's table: routing key, pattern, queue.  May switch."""
        return [self._link.commands.keys.row(each) for each in self._table(exchange)]

    def _table(self, exchange: str, what: str = "routing") -> Collection[bytes]:
        """Return the members of kombu's table of an exchange.  May switch."""
        link = self._link
        found: Collection[bytes] = link.commands.call(
            pack(b"SMEMBERS", link.commands.keys.bindings(exchange)), what=what
        )
        return found

    def bound_field(self, exchange: str, row: Row) -> bytes:
        """Return the field of a binding among those of its queue.  Never switches."""
        return self._link.commands.keys.bound_field(exchange, self._member(exchange, row))

    def _member(self, exchange: str, row: Row) -> bytes:
        """Return the member of the table that a binding of a queue is."""
        known = self._link.state.exchanges.get(exchange)
        pattern = row.pattern
        if known is not None and known.type == "headers":
            pattern = dumps(dict(sorted((row.arguments or {}).items())))
        return self._link.commands.keys.member(row.routing_key, pattern, row.queue)

    def _row(self, member: bytes) -> Row:
        """Return the binding that a member of the table is."""
        key, pattern, queue = self._link.commands.keys.row(member)
        # Patterns of kombu's begin with "^".
        return (
            Row(key, "", queue, _decoded(pattern))
            if pattern[:1] == "{"
            else Row(key, pattern, queue)
        )


def _kept_ms(expires_ms: int) -> int:
    """Return the lifetime of a table in which only queues of this expiry are bound."""
    return max(expires_ms * EXPIRY_FACTOR, LEAST_EXPIRY_MS)


def _onward_member(row: Row) -> str:
    """Return a binding between exchanges as a member of its source's set."""
    return dumps([row.queue, row.routing_key, dict(sorted((row.arguments or {}).items()))])


def _onward_row(member: bytes) -> Row | None:
    """Return the binding of such a member; None: it cannot be read."""
    try:
        destination, routing_key, arguments = loads(member)
        return Row(str(routing_key), "", str(destination), dict(arguments), True)
    except (ValueError, TypeError, RecursionError):
        return None


def _decoded(text: Any) -> Mapping[str, Any]:
    """Return a table as it is kept; one that cannot be read fits no message, and says nothing."""
    try:
        table = loads(text)
    except (ValueError, TypeError, RecursionError):
        table = None
    return table if isinstance(table, dict) else {"x-match": "any"}
