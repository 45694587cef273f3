"""Declaration and deletion of exchanges, queues and bindings.

The reader records what the broker has done in the connection's ``topology`` as soon as the reply comes:
also for a caller that was killed, or does not wait.

Quorum queues and streams support no prefetch for a whole channel, streams no reject, no get and no
consumer without acks.  The broker ends the whole connection over such a request, so it is not sent for
a queue whose type is known: by its declaration on the same connection (:class:`KnownQueues`), a stream
also by the offset that its consumer names.

``nowait`` means that the caller does not wait.  The broker is asked for the reply all the same: it tells
which of several requests has failed, and costs less than an error that reaches the wrong caller.  Where
it is a :class:`Pipeline`, that waits instead.

Delayed messages pass the levels of a link and the landing queue of their address.  The levels are
kombu's (``transport.native_delayed_delivery``) under a prefix of ours: programs of Celery in the same
virtual host may have declared theirs with another queue type, and bindings of theirs must not match our
messages.

A message that has passed the levels comes into the *landing queue* of its address, where it expires at
once: its dead letter goes to the exchange and with the routing key that the publisher named, so that any
type of exchange, and a queue by its name, gets it as if it had been published then.  All of these queues
are quorum queues with dead letters at least once: a node that is lost costs no message, and a message
that no queue takes when its delay is over waits in its landing queue until one does.
"""

from __future__ import annotations

import logging
import re
from binascii import crc32
from collections.abc import Callable, Mapping
from datetime import datetime
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from amqp import spec
from amqp.protocol import queue_declare_ok_t
from amqp.serialization import dumps

from greenconn.delays import DelayedRoute
from greenconn.green.slot import SingleFlight
from greenconn.green.supervisor import spawn
from greenconn.transport.amqp.calls import Pipeline
from greenconn.transport.base import StdChannel
from greenconn.transport.native_delayed_delivery import (
    MAX_LEVEL,
    MAX_NUMBER_OF_BITS_TO_USE,
    calculate_routing_key,
    declare_levels,
    delivery_exchange,
    level_name,
)
from greenconn.wire.amqp import Reply, read_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenconn.message import Message
    from greenconn.transport.amqp.calls import Calls
    from greenconn.transport.amqp.channel import Channel
    from greenconn.transport.amqp.link import AmqpLink
    from greenconn.wire.amqp import Signature


logger = logging.getLogger("greenconn.transport.amqp")

#: What the broker replies to each method.
_REPLIES: Final[dict[Signature, Signature]] = {
    spec.Exchange.Declare: spec.Exchange.DeclareOk,
    spec.Exchange.Delete: spec.Exchange.DeleteOk,
    spec.Exchange.Bind: spec.Exchange.BindOk,
    spec.Exchange.Unbind: spec.Exchange.UnbindOk,
    spec.Queue.Bind: spec.Queue.BindOk,
    spec.Queue.Unbind: spec.Queue.UnbindOk,
    spec.Queue.Purge: spec.Queue.PurgeOk,
}


class DeclaringChannel(StdChannel):
    """The part of a channel that declares, binds and deletes.

    Arguments:
        link: the connection of the channel.
        calls: the calls of the channel.

    Attributes:
        calls: the methods that it sends.
        cause: why it can no longer be used (the link's ``lost``, if that is why); None while it can.
    """

    def __init__(self, link: AmqpLink, calls: Calls) -> None:
        self.calls = calls
        self.cause: BaseException | None = None
        self._link = link
        #: Whether what it declares is declared again after the loss of the connection.
        self.is_recorded = True
        #: What a queue without a name means (AMQP 0-9-1, 1.7.2.1): the one declared last.
        self._last_queue = ""

    def exchange_declare(
        self,
        exchange: str,
        type: str,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = True,
        nowait: bool | Pipeline = False,
        arguments: Any = None,
        argsig: str = "BssbbbbbF",
    ) -> None:
        """Declare an exchange.  May switch."""
        self._ask(
            spec.Exchange.Declare,
            argsig,
            (0, exchange, type, passive, durable, auto_delete, False, False, arguments),
            nowait,
            None if passive else "exchange_declared",
            *(exchange, type, durable, auto_delete, arguments),
        )

    def exchange_delete(
        self,
        exchange: str,
        if_unused: bool = False,
        nowait: bool | Pipeline = False,
        argsig: str = "Bsbb",
    ) -> None:
        """Delete an exchange.  May switch."""
        self._ask(
            spec.Exchange.Delete,
            argsig,
            (0, exchange, if_unused, False),
            nowait,
            "exchange_deleted",
            exchange,
        )

    def exchange_bind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool | Pipeline = False,
        arguments: Any = None,
        argsig: str = "BsssbF",
    ) -> None:
        """Bind the exchange *destination* to the exchange *source*.  May switch."""
        self._ask(
            spec.Exchange.Bind,
            argsig,
            (0, destination, source, routing_key, False, arguments),
            nowait,
            "bound",
            *(False, destination, source, routing_key, arguments),
        )

    def exchange_unbind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool | Pipeline = False,
        arguments: Any = None,
        argsig: str = "BsssbF",
    ) -> None:
        """Undo :meth:`exchange_bind`.  May switch."""
        self._ask(
            spec.Exchange.Unbind,
            argsig,
            (0, destination, source, routing_key, False, arguments),
            nowait,
            "unbound",
            *(False, destination, source, routing_key, arguments),
        )

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = True,
        nowait: bool | Pipeline = False,
        arguments: Any = None,
        argsig: str = "BsbbbbbF",
    ) -> Any:
        """Declare a queue.  May switch.

        A queue that the broker named is deleted when its caller is killed before it knows the name.

        Returns:
            Name, number of messages and of consumers; None with *nowait*.
        """
        record = self._recorder(None if passive else "queue_declared")
        is_abandoned = nowait and not isinstance(nowait, Pipeline)

        def on_reply(reply: Reply) -> None:
            name = self._last_queue = _name_in(reply)
            if not passive:
                self._link.queues.declared(name, arguments or {})
            record(name, durable, exclusive, auto_delete, arguments, not queue)

        reply = self.calls.send(
            spec.Queue.Declare,
            argsig,
            (0, queue, passive, durable, exclusive, auto_delete, False, arguments),
            wait=spec.Queue.DeclareOk,
            returns_tuple=True,
            undo=None if queue or is_abandoned else self._undo_declare,
            on_reply=on_reply,
            abandons=nowait,
        )
        return None if nowait else queue_declare_ok_t(*reply)

    def _undo_declare(self, reply: Reply) -> None:
        if self.cause is None:
            name = _name_in(reply)
            self.calls.call(
                spec.Queue.Delete,
                dumps("Bsbbb", (0, name, False, False, False)),
                wait=spec.Queue.DeleteOk,
                abandons=True,
            )
            self._recorder("queue_deleted")(name)

    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool | Pipeline = False,
        argsig: str = "Bsbbb",
    ) -> Any:
        """Delete a queue.  May switch.

        Returns:
            How many messages were in it; None with *nowait*.
        """
        name, record = queue or self._last_queue, self._recorder("queue_deleted")

        def on_reply(reply: Reply) -> None:
            self._link.queues.deleted(name)
            record(name)

        return self.calls.send(
            spec.Queue.Delete,
            argsig,
            (0, queue, if_unused, if_empty, False),
            wait=spec.Queue.DeleteOk,
            on_reply=on_reply,
            abandons=nowait,
        )

    def queue_bind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool | Pipeline = False,
        arguments: Any = None,
        argsig: str = "BsssbF",
    ) -> None:
        """Bind *queue* to *exchange*.  May switch."""
        name = queue or self._last_queue
        key = routing_key if queue else routing_key or name  # as the broker has it
        self._ask(
            spec.Queue.Bind,
            argsig,
            (0, queue, exchange, routing_key, False, arguments),
            nowait,
            "bound",
            *(True, name, exchange, key, arguments),
        )

    def queue_unbind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool | Pipeline = False,
        arguments: Any = None,
        argsig: str = "BsssF",
    ) -> None:
        """Undo :meth:`queue_bind`.  May switch."""
        name = queue or self._last_queue
        key = routing_key if queue else routing_key or name
        self._ask(
            spec.Queue.Unbind,
            argsig,
            (0, queue, exchange, routing_key, arguments),
            nowait,
            "unbound",
            *(True, name, exchange, key, arguments),
        )

    def queue_purge(
        self, queue: str = "", nowait: bool | Pipeline = False, argsig: str = "Bsb"
    ) -> Any:
        """Delete the messages of a queue that are ready for delivery.  May switch.

        Returns:
            The number of messages; None with *nowait*.
        """
        return self._ask(spec.Queue.Purge, argsig, (0, queue, False), nowait)

    def _recorder(self, what: str | None) -> Callable[..., None]:
        """Return the method of the connection's topology that records it; it never switches."""
        topology = self._link.topology
        if what is None or topology is None or not self.is_recorded:
            return _record_nothing
        recorder: Callable[..., None] = getattr(topology, what)
        return recorder

    def _ask(
        self,
        method: Signature,
        argsig: str,
        args: tuple[Any, ...],
        nowait: bool | Pipeline,
        what: str | None = None,
        *recorded: Any,
    ) -> Any:
        """Send *method*; when the broker has done it, have the topology record *what*.  May switch."""
        record = self._recorder(what)
        return self.calls.send(
            method,
            argsig,
            args,
            wait=_REPLIES[method],
            on_reply=lambda reply: record(*recorded),
            abandons=nowait,
        )


def _record_nothing(*recorded: object) -> None:
    pass


def _name_in(reply: Reply) -> str:
    return str(read_arguments(reply[0], "s", reply[1])[0])


#: RabbitMQ 4's limit of a quorum queue that sets none.
DEFAULT_LIMIT: Final = 20
#: Queues of which one connection remembers the kind, and as many of which it remembers the limit.
_KEPT: Final = 10_000


class KnownQueues:
    """Queues as one connection knows them by their declarations.  Nothing here switches.

    A quorum queue drops a message that was delivered more often than its ``x-delivery-limit`` (RabbitMQ
    4: 20, if it sets none) and was not acknowledged.  With a dead-letter exchange the message goes
    there; without one it is gone, so the log warns before.

    Arguments:
        where: the broker's URL with the password masked, for messages.
        version: of the RabbitMQ; None for another broker.

    Attributes:
        kinds: ``x-queue-type`` of each queue that is not classic.
        single_active: those with a single active consumer.
    """

    def __init__(self, where: str, version: tuple[int, int] | None) -> None:
        self.kinds: dict[str, str] = {}
        self.single_active: set[str] = set()
        self._where = where
        self._default = DEFAULT_LIMIT if version is not None and version >= (4, 0) else None
        #: By queue, where it is not the default; None: nothing is dropped silently, or it was said.
        self._limits: dict[str, int | None] = {}

    def declared(self, queue: str, arguments: Mapping[str, Any]) -> None:
        """Note that *queue* was declared."""
        kind = arguments.get("x-queue-type")
        if kind in ("quorum", "stream"):
            if len(self.kinds) >= _KEPT:
                del self.kinds[next(iter(self.kinds))]  # the one known longest
            self.kinds[queue] = kind
        else:
            self.kinds.pop(queue, None)
        if arguments.get("x-single-active-consumer") is not True:
            self.single_active.discard(queue)
        elif len(self.single_active) < _KEPT:
            self.single_active.add(queue)
        limit = arguments.get("x-delivery-limit", self._default)
        is_silent = kind == "quorum" and "x-dead-letter-exchange" not in arguments
        self._note(queue, limit if is_silent and isinstance(limit, int) and limit >= 0 else None)

    def deleted(self, queue: str) -> None:
        """Note that *queue* was deleted."""
        self.kinds.pop(queue, None)
        self.single_active.discard(queue)
        self._limits.pop(queue, None)

    def check_delivery_count(self, queue: str, message: Message) -> None:
        """Warn, once for each queue, when *message* was delivered nearly as often as it may be."""
        limit = self._limits.get(queue, self._default)
        if limit is None:
            return
        count = message.headers.get("x-delivery-count")
        if not isinstance(count, int) or count * 4 < limit * 3:
            return
        self._note(queue, None)
        spawn(
            "log",
            logger.warning,
            "%s: a message of queue %r was delivered %d times before; without a dead-letter "
            "exchange a quorum queue drops a message that was delivered more than %d times "
            "without an ack: set x-dead-letter-exchange, or raise x-delivery-limit (logged once)",
            self._where,
            queue,
            count,
            limit,
            extra={"connection": self._where, "queue": queue},
        )

    def _note(self, queue: str, limit: int | None) -> None:
        if len(self._limits) >= _KEPT and queue not in self._limits:
            del self._limits[next(iter(self._limits))]  # the one known longest
        self._limits[queue] = limit


#: Seconds.
LONGEST_DELAY: Final = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
#: Of the names of everything that is declared here.
PREFIX: Final = "greenconn"
#: What the names of its queues begin with.
_OWN: Final = (f"{PREFIX}_celery_delayed_", f"{PREFIX}_delayed.")
#: Why a message is dead-lettered, and how often RabbitMQ counts it.
_REASONS: Final = ("rejected", "expired", "maxlen", "delivery_limit")
_MOST_DEATHS: Final = 2**53
#: What a landing queue may show of its address in its name: no wildcards of topics.
_READABLE: Final = re.compile(r"[\w.:/-]{1,120}", re.ASCII)


class DelayLevels:
    """The levels and the landing queues that one link has declared."""

    def __init__(self) -> None:
        #: Addresses whose landing queue is declared, and all levels before.
        self._known: set[tuple[str, str]] = set()
        self._flight = SingleFlight("delay-levels")

    def route(
        self,
        open_channel: Callable[[], Channel],
        exchange: str,
        routing_key: str,
        delay: float,
        headers: Mapping[str, Any] | None,
        properties: Mapping[str, Any],
    ) -> DelayedRoute:
        """Return how a delayed message is published.  May switch, the first time for its address.

        Arguments:
            open_channel: opens a channel of the link, which must not be kept: it would refer to itself.

        Raises:
            ValueError: it is delayed for too long, or has what a delayed message cannot keep.
            ChannelError: the broker refuses to declare what is needed.
        """
        seconds = ceil(delay)
        if seconds > LONGEST_DELAY:
            raise ValueError(
                f"delay must be at most {LONGEST_DELAY} seconds on RabbitMQ, got {delay:g}"
            )
        if properties.get("expiration") is not None:
            raise ValueError(
                f"expiration must be None with a delay on RabbitMQ, where it would end the delay (set "
                f"message_ttl of the queue instead), got {properties['expiration']!r}"
            )
        for name in ("CC", "BCC"):
            if headers and name in headers:
                raise ValueError(
                    f"header {name} must not be set with a delay on RabbitMQ, which would send these "
                    f"copies at once (publish to each), got {headers[name]!r}"
                )
        address = exchange, routing_key
        if address not in self._known:
            # Its own greenlet: a caller that is killed leaves nothing half declared.
            self._flight.run(address, lambda: self._declare(open_channel, address))
        landing = landing_queue(exchange, routing_key)
        return DelayedRoute(
            level_name(MAX_LEVEL, PREFIX),
            calculate_routing_key(seconds, landing),
            without_former_delays(headers or {}, "" if exchange else routing_key),
        )

    def _declare(self, open_channel: Callable[[], Channel], address: tuple[str, str]) -> None:
        exchange, routing_key = address
        name = landing_queue(exchange, routing_key)
        with open_channel() as channel:
            # They outlive the connection, whose recovery has nothing to do with them.
            channel.is_recorded = False
            if not self._known:
                declare_levels(channel, "quorum", PREFIX)
            channel.queue_declare(
                name,
                durable=True,
                auto_delete=False,
                arguments={
                    "x-queue-type": "quorum",
                    "x-overflow": "reject-publish",
                    "x-message-ttl": 0,
                    "x-dead-letter-exchange": exchange,
                    "x-dead-letter-routing-key": routing_key,
                    "x-dead-letter-strategy": "at-least-once",
                },
            )
            channel.queue_bind(name, delivery_exchange(PREFIX), f"#.{name}")
        self._known.add(address)


def without_former_delays(headers: Mapping[str, Any], queue: str = "") -> dict[str, Any]:
    """Return *headers* without the traces of an earlier delay, and with no death that cannot be one.

    The broker drops a message that comes through the same queue again, as one that goes in a circle.  An
    entry that it cannot read, which any publisher can write, ends its process that moves the dead
    letters of a queue, again and again: no delayed message reaches its queue then.

    Arguments:
        queue: where the message goes after the delay.
    """
    found = dict(headers)
    deaths = found.pop("x-death", None)
    if isinstance(deaths, list):
        kept = [each for each in deaths if _is_death(each, queue)]
        if kept:
            found["x-death"] = kept
    for which in ("first", "last"):
        names = [f"x-{which}-death-{what}" for what in ("queue", "reason", "exchange")]
        texts = [found.get(name, "") for name in names]
        if not all(isinstance(each, str) for each in texts) or texts[0].startswith(_OWN):
            for name in names:
                found.pop(name, None)
    return found


def _is_death(death: Any, queue: str) -> bool:
    """Return whether an entry of ``x-death`` is one of RabbitMQ's, and of no delay or circle."""
    if not isinstance(death, Mapping):
        return False
    texts = [death.get(name) for name in ("queue", "exchange", "reason")]
    keys, count = death.get("routing-keys"), death.get("count")
    return (
        all(isinstance(each, str) for each in texts)
        and isinstance(keys, list)
        and all(isinstance(each, str) for each in keys)
        and isinstance(count, int)
        and 0 < count < _MOST_DEATHS
        and isinstance(death.get("time"), datetime)
        and texts[2] in _REASONS
        and not str(texts[0]).startswith(_OWN)
        and (texts[0] != queue or texts[2] == "rejected")
    )


def landing_queue(exchange: str, routing_key: str) -> str:
    """Return the name of the queue through which delayed messages reach an address."""
    shown = f"{exchange}/{routing_key}"
    if "/" in exchange or "/" in routing_key or not _READABLE.fullmatch(shown):
        # Two names that are the same here would differ in the arguments of the queue: no message
        # reaches a wrong address, but the second declaration is refused.
        address = f"{exchange}\0{routing_key}".encode()
        shown = f"{crc32(address):08x}{crc32(address[::-1]):08x}"
    return f"{PREFIX}_delayed.{shown}"
