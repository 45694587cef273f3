"""Where a message goes: exchanges as this process knows them, bindings as the server has them.

Exchanges are declared in each program, as in kombu, and noted in the server, so that another program
may publish to one that it has not declared.  Bindings of queues are kombu's tables in the server and
are read for each message, so a change counts at once.  What kombu does not have here is ours: a binding
of a headers exchange has its arguments as JSON where others have a pattern, and those between exchanges
are in sets of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.dead_letters import carbon_copies
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.scripts import BIND
from greenconn.transport.refusal import Method, no_exchange
from greenconn.transport.virtual.exchange import (
    ROUTERS,
    STANDARD_EXCHANGE_TYPES,
    ExchangeType,
)
from greenconn.transport.virtual.matching import headers_match
from greenconn.transport.virtual.state import Binding, Exchange
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Routes", "Routing"]

#: A table of bindings of expiring queues is kept for so many times their expiry, and for an hour at
#: least (kombu's figures).
EXPIRY_FACTOR: Final = 2
LEAST_EXPIRY_MS: Final = 3_600_000
#: Renewals in that time, where the queue is in use (kombu's figure).
RENEWALS: Final = 3

#: For their tables; they need no channel.
_TYPES: Final[dict[str, ExchangeType]] = {
    name: kind(None) for name, kind in STANDARD_EXCHANGE_TYPES.items()
}


def _declared(text: bytes | None) -> dict[str, Any]:
    """How an exchange was declared, as the server keeps it; what cannot be read says nothing."""
    try:
        kept = loads(text) if text is not None else None
    except (ValueError, TypeError, RecursionError):
        return {}
    if not isinstance(kept, dict) or not isinstance(kept.get("arguments") or {}, dict):
        return {}
    return kept


def _kept_ms(expires_ms: int) -> int:
    """How long a table stays that only queues of this expiry are bound in."""
    return max(expires_ms * EXPIRY_FACTOR, LEAST_EXPIRY_MS)


def _onward_member(binding: Binding) -> str:
    """A binding between exchanges as a member of its source's set."""
    arguments = dict(sorted(binding.arguments.items()))
    return dumps([binding.destination, binding.routing_key, arguments])


def _onward(source: str, member: bytes) -> Binding:
    """The binding of such a member; one that cannot be read leads nowhere."""
    try:
        destination, routing_key, arguments = loads(member)
        return Binding(source, destination, routing_key, arguments, to_exchange=True)
    except (ValueError, TypeError, RecursionError):
        return Binding(source, "", "", to_exchange=True)


def _next(
    exchange: Exchange, members: list[bytes], routing_key: str, headers: Mapping[str, Any]
) -> list[str]:
    """The exchanges that a message goes on to, by the members of the exchange's set."""
    if not members:
        return []
    router = ROUTERS[exchange.type]()
    for each in members:
        router.add(_onward(exchange.name, each))
    return [each.destination for each in router.match(routing_key, headers)]


def _arguments(text: str) -> Mapping[str, Any]:
    """The arguments of a binding of a headers exchange; those that cannot be read fit nothing."""
    try:
        arguments = loads(text) if text else {}
    except (ValueError, TypeError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {"x-match": "any"}


class Routes:
    """Where one message goes.

    Attributes:
        queues: names, each once.
        topics: exchange and routing key of each fan-out by publishing.
    """

    __slots__ = ("queues", "topics")

    def __init__(self) -> None:
        self.queues: dict[str, None] = {}
        self.topics: dict[tuple[str, str], None] = {}

    def __bool__(self) -> bool:
        return bool(self.queues or self.topics)


class Routing:
    """The routes of one link."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._state = link.state
        #: Queue that expires -> when its bindings must be renewed, on the monotonic clock.
        self._renewed: dict[str, float] = {}

    # -- exchanges

    def learn(self, name: str) -> Exchange | None:
        """Return an exchange, asking the server where this process knows none.  May switch.

        One that only programs of kombu have declared is known by its bindings alone: it is taken for
        what these look like, and not kept, since it may be declared here later.
        """
        known = self._state.exchanges.get(name)
        if known is not None:
            return known
        link = self._link
        text, table = link.call_all(
            [pack(b"GET", link.keys.exchange(name)), pack(b"EXISTS", link.keys.bindings(name))],
            what=f"looking for exchange {name!r}",
        )
        if text is None and not table:
            return None
        kept = _declared(text)
        kind = kept.get("type")
        if not isinstance(kind, str) or kind not in _TYPES:
            has_patterns = any(pattern for _, pattern, _ in self.table(name))
            kind = "topic" if has_patterns else "direct"
            return Exchange(name, kind, ROUTERS[kind]())
        return self._state.exchanges.get(name) or self._state.declare(
            name,
            kind,
            durable=bool(kept.get("durable")),
            auto_delete=bool(kept.get("auto_delete")),
            arguments=kept.get("arguments"),
        )

    def note(self, exchange: Exchange) -> None:
        """Tell the server of an exchange.  May switch."""
        text = dumps(
            {
                "type": exchange.type,
                "durable": exchange.durable,
                "auto_delete": exchange.auto_delete,
                "arguments": dict(exchange.arguments),
            }
        )
        key = self._link.keys.exchange(exchange.name)
        self._link.call(pack(b"SET", key, text), what=f"declaring exchange {exchange.name!r}")

    def is_used(self, name: str) -> bool:
        """Whether a queue is bound to an exchange, by whatever program.  May switch."""
        return self.learn(name) is not None and not self._is_unbound(name)

    def _is_unbound(self, name: str) -> bool:
        keys = self._link.keys
        command = pack(b"EXISTS", keys.bindings(name), keys.onward(name))
        return not self._link.call(command, what="routing")

    def drop(self, name: str) -> None:
        """An exchange was deleted.  May switch."""
        keys = self._link.keys
        names = (
            *(keys.exchange(name), keys.bindings(name), keys.permanent_bindings(name)),
            *(keys.onward(name), keys.sources(name)),
        )
        members, sources = self._link.call_all(
            [pack(b"SMEMBERS", keys.bindings(name)), pack(b"SMEMBERS", keys.sources(name))],
            what="routing",
        )
        self._leave_sources(name, [each.decode() for each in sources])
        commands = [pack(b"DEL", *names), pack(b"ZREM", keys.binding_deadlines, name)]
        for member in members:
            _, _, queue = keys.row(member)
            commands.append(pack(b"HDEL", keys.bound(queue), keys.bound_field(name, member)))
        self._link.call_all(commands, what=f"deleting exchange {name!r}")
        self._end_exchanges(each.decode() for each in sources)

    def _leave_sources(self, name: str, sources: list[str]) -> None:
        """Take the bindings of an exchange to *sources* out of the server's sets.  May switch."""
        link, keys = self._link, self._link.keys
        for source in sources:
            members = link.call(pack(b"SMEMBERS", keys.onward(source)), what="routing")
            gone = [each for each in members if _onward(source, each).destination == name]
            if gone:
                link.call(pack(b"SREM", keys.onward(source), *gone), what="unbinding")

    # -- bindings

    def bind(self, binding: Binding) -> None:
        """Make a binding, here and in the server; again: only tells the server.  May switch."""
        link, keys = self._link, self._link.keys
        self._state.bind(binding)
        kind = self._state.exchanges[binding.source].type
        if binding.to_exchange:
            link.call_all(
                [
                    pack(b"SADD", keys.onward(binding.source), _onward_member(binding)),
                    pack(b"SADD", keys.sources(binding.destination), binding.source),
                ],
                what="binding",
            )
            return
        if kind == "fanout" and not link.options.fanout_lists:
            link.fanout.bound(binding.destination)
        member = self._member(binding, kind)
        declared = link.directory.find(binding.destination)
        expires = None if declared is None else declared.expires_ms
        if expires is None:
            other, kept_ms = keys.permanent_bindings(binding.source), ""
        else:
            other, kept_ms = keys.binding_deadlines, str(_kept_ms(expires))
        tables = (keys.bindings(binding.source), other, keys.bound(binding.destination))
        field = keys.bound_field(binding.source, member)
        link.run(BIND, tables, member, field, binding.source, kept_ms, what="binding")

    def keep(self, name: str, expires_ms: int) -> None:
        """A queue that expires is in use: so are its bindings that were made here.  Never switches.

        A program of kombu would remove the tables of those that nobody renews.
        """
        now = monotonic()
        if now < self._renewed.get(name, 0.0):
            return
        kept_ms = _kept_ms(expires_ms)
        self._renewed[name] = now + kept_ms / 1000 / RENEWALS
        link, keys = self._link, self._link.keys

        def renewed(reply: Any) -> None:
            if isinstance(reply, Exception):
                self._renewed.pop(name, None)
                link.scripts.forget()  # somebody may have flushed them: with the next use

        for binding in self._state.all_bindings():
            if binding.destination == name and not binding.to_exchange:
                kind = self._state.exchanges[binding.source].type
                member = self._member(binding, kind)
                tables = (keys.bindings(binding.source), keys.binding_deadlines, keys.bound(name))
                field = keys.bound_field(binding.source, member)
                command = link.scripts.call(
                    BIND, tables, member, field, binding.source, str(kept_ms)
                )
                link.pipeline.post(command, renewed)

    def unbind(self, binding: Binding) -> None:
        """Remove a binding, here and from the server, wherever it was made.  May switch."""
        link, keys = self._link, self._link.keys
        known = self.learn(binding.source)
        if known is None:
            return
        if binding.to_exchange:
            further = _onward_member(binding)
            commands = [pack(b"SREM", keys.onward(binding.source), further)]
        else:
            if known.type == "fanout":
                link.fanout.unbound(binding.destination, binding.source, binding.routing_key)
            member = self._member(binding, known.type)
            field = keys.bound_field(binding.source, member)
            commands = [
                pack(b"SREM", keys.bindings(binding.source), member),
                pack(b"SREM", keys.permanent_bindings(binding.source), member),
                pack(b"HDEL", keys.bound(binding.destination), field),
            ]
        was_there = link.call_all(commands, what="unbinding")[0]
        self._state.unbind(binding)
        if was_there:
            self._end_exchanges([binding.source])

    def unbind_queue(self, name: str) -> None:
        """A queue is gone: so are its bindings.  May switch."""
        self._link.directory.drop(name)

    def queue_ended(self, name: str, exchanges: list[str]) -> None:
        """A queue is gone, and its bindings in the server are: forget those here.  May switch.

        Arguments:
            exchanges: those that have no bindings any more.
        """
        self._link.fanout.leave(name)
        self._renewed.pop(name, None)
        sources = [each.exchange for each in self._state.queue_bindings(name)]
        self._state.queue_bindings_delete(name)
        gone = [each for each in sources if each not in self._state.exchanges]
        self._end_exchanges(dict.fromkeys([*gone, *exchanges]))

    def _end_exchanges(self, names: Iterable[str]) -> None:
        """Delete those of *names* that go with their last binding, and have none.  May switch."""
        for name in names:
            known = self.learn(name)
            if (
                known is not None
                and known.auto_delete
                and not known.bindings
                and self._is_unbound(name)
            ):
                self._state.delete(name)
                self.drop(name)

    def _member(self, binding: Binding, kind: str) -> bytes:
        """A binding as a member of the table of its exchange, which is of that type."""
        if kind == "headers":
            arguments = dumps(dict(sorted(binding.arguments.items())))
            return self._link.keys.member(binding.routing_key, arguments, binding.destination)
        key, pattern, queue = _TYPES[kind].prepare_bind(
            binding.destination, binding.source, binding.routing_key, binding.arguments
        )
        return self._link.keys.member(key, pattern, queue)

    def table(self, exchange: str) -> list[tuple[str, str, str]]:
        """The rows of an exchange's table: routing key, pattern, queue.  May switch."""
        keys = self._link.keys
        members = self._link.call(pack(b"SMEMBERS", keys.bindings(exchange)), what="routing")
        return [keys.row(each) for each in members]

    def bound(self, exchange: str, routing_key: str) -> list[str]:
        """The queues that an exchange leads to by its table alone, fan-out too.  May switch."""
        known = self.learn(exchange)
        if known is None:
            return []
        kind = _TYPES["fanout" if known.type == "headers" else known.type]
        table = self.table(exchange)
        queues = sorted(kind.lookup(table, exchange, routing_key, None))
        return self._existing(exchange, table, queues) or queues

    # -- messages

    def routes(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> Routes:
        """Return where a message goes.  May switch.

        Raises:
            NotFound: there is no such exchange.
        """
        start = self.learn(exchange)
        if start is None:
            vhost = getattr(self._link.client, "virtual_host", None) or "/"
            raise no_exchange(exchange, vhost, Method.BASIC_PUBLISH)
        routes = Routes()
        for key in (routing_key, *carbon_copies(headers, "CC", "BCC")):
            self._walk(start, key, headers, routes)
        return routes

    def _walk(
        self, start: Exchange, routing_key: str, headers: Mapping[str, Any], routes: Routes
    ) -> None:
        seen = {start.name}
        todo = deque([start])
        while todo:
            exchange = todo.popleft()
            onward = self._step(exchange, routing_key, headers, routes)
            for name in onward:
                if name not in seen:
                    seen.add(name)
                    known = self.learn(name)
                    if known is not None:
                        todo.append(known)

    def _step(
        self, exchange: Exchange, routing_key: str, headers: Mapping[str, Any], routes: Routes
    ) -> list[str]:
        """Note where one exchange sends a message, and return the exchanges that it goes on to."""
        link, keys, name = self._link, self._link.keys, exchange.name
        further = pack(b"SMEMBERS", keys.onward(name))
        if exchange.type == "fanout" and not link.options.fanout_lists:
            routes.topics[name, routing_key] = None
            return _next(exchange, link.call(further, what="routing"), routing_key, headers)
        members, others = link.call_all(
            [pack(b"SMEMBERS", keys.bindings(name)), further], what="routing"
        )
        onward = _next(exchange, others, routing_key, headers)
        table = [keys.row(each) for each in members]
        if exchange.type == "headers":
            queues = [row[2] for row in table if headers_match(_arguments(row[1]), headers)]
        else:
            queues = list(_TYPES[exchange.type].lookup(table, name, routing_key, None))
        queues = self._existing(name, table, queues)
        routes.queues.update(dict.fromkeys(queues))
        if not queues and not onward and exchange.alternate is not None:
            onward.append(exchange.alternate)
        return onward

    def _existing(
        self, exchange: str, table: list[tuple[str, str, str]], queues: list[str]
    ) -> list[str]:
        """Those of *queues* that there are; a binding may outlive its queue.  May switch."""
        directory, keys = self._link.directory, self._link.keys
        doubtful: dict[str, list[bytes]] = {
            each: [] for each in queues if not directory.trusts(each)
        }
        if not doubtful:
            return queues
        for routing_key, pattern, queue in table:
            if queue in doubtful:
                member = keys.member(routing_key, pattern, queue)
                doubtful[queue].append(keys.bound_field(exchange, member))
        there = directory.existing(doubtful)
        return [each for each in queues if each not in doubtful or each in there]
