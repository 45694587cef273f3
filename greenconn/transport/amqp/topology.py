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
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from amqp import spec
from amqp.protocol import queue_declare_ok_t
from amqp.serialization import dumps

from greenconn.green.supervisor import spawn
from greenconn.transport.amqp.calls import Pipeline
from greenconn.transport.base import StdChannel
from greenconn.wire.amqp import Reply, read_arguments

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.transport.amqp.calls import Calls
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
