"""Routes of one message: queues that exist, and channels of fan-out exchanges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from greenconn.transport.redis.fanout import topic_of
from greenconn.transport.virtual.exchange import STANDARD_EXCHANGE_TYPES, ExchangeType

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Routes", "bound_queues", "routes_of"]

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


def routes_of(
    link: RedisLink, exchange: str, routing_key: str, headers: Mapping[str, Any]
) -> Routes:
    """Return where a message goes.  May switch.

    A binding may outlive its queue.  Who finds that removes it, and then the exchange may have no
    binding for the message any more, but an alternate exchange.

    Raises:
        NotFound: there is no such exchange.
    """
    gone: set[str] = set()
    while True:
        routes = Routes(link.routing.routes(exchange, routing_key, headers))
        routes.queues = [each for each in routes.queues if each not in gone]
        there = existing(link, routes.queues)
        if len(there) == len(routes.queues):
            return routes
        gone.update(each for each in routes.queues if each not in there)


def existing(link: RedisLink, queues: list[str]) -> list[str]:
    """Return those of *queues* that exist.  May switch."""
    directory, topology = link.directory, link.records
    doubtful = {
        each: [topology.bound_field(*binding) for binding in link.routing.rows_to(each)]
        for each in queues
        if not directory.trusts(each)
    }
    if not doubtful:
        return queues
    there = directory.existing(doubtful)
    return [each for each in queues if each not in doubtful or each in there]


def bound_queues(link: RedisLink, exchange: str, routing_key: str) -> list[str]:
    """Return the queues that an exchange leads to by its table alone, fan-out too.  May switch."""
    known = link.routing.learn(exchange)
    if known is None:
        return []
    kind = _TYPES["fanout" if known.type == "headers" else known.type]
    queues = sorted(kind.lookup(link.records.table(exchange), exchange, routing_key, None))
    return existing(link, queues) or queues
