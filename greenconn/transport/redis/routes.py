"""Routes of one message: queues that exist, and channels of fan-out exchanges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from greenconn.broker.routing import Routing
from greenconn.transport.redis.fanout import topic_of
from greenconn.transport.redis.queues import RedisQueues
from greenconn.transport.redis.topology import RedisTopology
from greenconn.transport.virtual.exchange import STANDARD_EXCHANGE_TYPES, ExchangeType

__all__ = ["QueueRoutes", "Routes"]

#: For their tables; they need no channel.
_TYPES: Final[dict[str, ExchangeType]] = {
    name: kind(None) for name, kind in STANDARD_EXCHANGE_TYPES.items()
}


class Routes:
    """The routes of one message.

    Attributes:
        queues: names, each once.
        topics: exchange and routing key of each fan-out by publishing.
    """

    __slots__ = ("queues", "topics")

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.queues: list[str] = []
        self.topics: list[tuple[str, str]] = []
        for name in names:
            topic = topic_of(name)
            if topic is None:
                self.queues.append(name)
            else:
                self.topics.append(topic)


class QueueRoutes:
    """The routes of messages, as one link knows them, to queues that exist.

    Arguments:
        routing: the exchanges and bindings.
        queues: the queues.
        topology: the bindings in the server.
    """

    __slots__ = ("_queues", "_routing", "_topology")

    def __init__(self, routing: Routing, queues: RedisQueues, topology: RedisTopology) -> None:
        self._routing = routing
        self._queues = queues
        self._topology = topology

    def find(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> Routes:
        """Return where a message goes.  May switch.

        A binding may outlive its queue.  Who finds that removes it, and then the exchange may have
        no binding for the message any more, but an alternate exchange.

        Raises:
            NotFound: there is no such exchange.
        """
        gone: set[str] = set()
        while True:
            routes = Routes(self._routing.routes(exchange, routing_key, headers))
            routes.queues = [each for each in routes.queues if each not in gone]
            there = self.existing(routes.queues)
            if len(there) == len(routes.queues):
                return routes
            gone.update(each for each in routes.queues if each not in there)

    def existing(self, queues: list[str]) -> list[str]:
        """Return those of *queues* that exist.  May switch."""
        topology = self._topology
        doubtful = {
            each: [topology.bound_field(*binding) for binding in self._routing.rows_to(each)]
            for each in queues
            if not self._queues.trusts(each)
        }
        if not doubtful:
            return queues
        there = self._queues.existing(doubtful)
        return [each for each in queues if each not in doubtful or each in there]

    def bound_queues(self, exchange: str, routing_key: str) -> list[str]:
        """Return the queues that an exchange leads to by its table alone, fan-out too.  May switch."""
        known = self._routing.learn(exchange)
        if known is None:
            return []
        kind = _TYPES["fanout" if known.type == "headers" else known.type]
        table = self._topology.table(exchange)
        queues = sorted(kind.lookup(table, exchange, routing_key, None))
        return self.existing(queues) or queues
