"""Declaration and deletion of exchanges, queues and bindings.

The reader records what the broker has done in the connection's ``topology`` as soon as the reply comes:
also for a caller that was killed, or does not wait.

``nowait`` means that the caller does not wait.  The broker is asked for the reply all the same: it tells
which of several requests has failed, and costs less than an error that reaches the wrong caller.  Where
it is a :class:`Pipeline`, that waits instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from amqp import spec
from amqp.protocol import queue_declare_ok_t
from amqp.serialization import dumps

from greenconn.transport.amqp.calls import Pipeline
from greenconn.transport.amqp.methods import Reply, read_arguments
from greenconn.transport.base import StdChannel

if TYPE_CHECKING:
    from greenconn.transport.amqp.calls import Calls
    from greenconn.transport.amqp.link import AmqpLink


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
        record = None if passive else self._recorder("exchange_declared")
        self._ask(
            spec.Exchange.Declare,
            argsig,
            (0, exchange, type, passive, durable, auto_delete, False, False, arguments),
            spec.Exchange.DeclareOk,
            nowait,
            record and partial(record, exchange, type, durable, auto_delete, arguments),
        )

    def exchange_delete(
        self,
        exchange: str,
        if_unused: bool = False,
        nowait: bool | Pipeline = False,
        argsig: str = "Bsbb",
    ) -> None:
        """Delete an exchange.  May switch."""
        record = self._recorder("exchange_deleted")
        self._ask(
            spec.Exchange.Delete,
            argsig,
            (0, exchange, if_unused, False),
            spec.Exchange.DeleteOk,
            nowait,
            record and partial(record, exchange),
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
        record = self._recorder("bound")
        self._ask(
            spec.Exchange.Bind,
            argsig,
            (0, destination, source, routing_key, False, arguments),
            spec.Exchange.BindOk,
            nowait,
            record and partial(record, False, destination, source, routing_key, arguments),
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
        record = self._recorder("unbound")
        self._ask(
            spec.Exchange.Unbind,
            argsig,
            (0, destination, source, routing_key, False, arguments),
            spec.Exchange.UnbindOk,
            nowait,
            record and partial(record, False, destination, source, routing_key, arguments),
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
        record = None if passive else self._recorder("queue_declared")
        is_abandoned = nowait and not isinstance(nowait, Pipeline)

        def on_reply(reply: Reply) -> None:
            name = self._last_queue = _name_in(reply)
            if not passive:
                self._link.queues.declared(name, arguments or {})
            if record is not None:
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
            if (record := self._recorder("queue_deleted")) is not None:
                record(name)

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
        record, name = self._recorder("queue_deleted"), queue or self._last_queue

        def on_deleted() -> None:
            self._link.queues.deleted(name)
            if record is not None:
                record(name)

        return self._ask(
            spec.Queue.Delete,
            argsig,
            (0, queue, if_unused, if_empty, False),
            spec.Queue.DeleteOk,
            nowait,
            on_deleted,
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
        record = self._recorder("bound")
        name = queue or self._last_queue
        key = routing_key if queue else routing_key or name  # as the broker has it
        self._ask(
            spec.Queue.Bind,
            argsig,
            (0, queue, exchange, routing_key, False, arguments),
            spec.Queue.BindOk,
            nowait,
            record and partial(record, True, name, exchange, key, arguments),
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
        record = self._recorder("unbound")
        name = queue or self._last_queue
        key = routing_key if queue else routing_key or name
        self._ask(
            spec.Queue.Unbind,
            argsig,
            (0, queue, exchange, routing_key, arguments),
            spec.Queue.UnbindOk,
            nowait,
            record and partial(record, True, name, exchange, key, arguments),
        )

    def queue_purge(
        self, queue: str = "", nowait: bool | Pipeline = False, argsig: str = "Bsb"
    ) -> Any:
        """Delete the messages of a queue that are ready for delivery.  May switch.

        Returns:
            The number of messages; None with *nowait*.
        """
        return self._ask(
            spec.Queue.Purge, argsig, (0, queue, False), spec.Queue.PurgeOk, nowait, None
        )

    def _recorder(self, what: str) -> Callable[..., None] | None:
        """Return the method of the connection's topology that records it; it never switches."""
        topology = self._link.topology
        return getattr(topology, what) if topology is not None and self.is_recorded else None

    def _ask(
        self,
        method: tuple[int, int],
        argsig: str,
        args: tuple[Any, ...],
        reply: tuple[int, int],
        nowait: bool | Pipeline,
        record: Callable[[], None] | None,
    ) -> Any:
        """Send *method*; call *record*, which must not switch, when the broker has done it."""
        return self.calls.send(
            method,
            argsig,
            args,
            wait=reply,
            on_reply=None if record is None else lambda reply: record(),
            abandons=nowait,
        )


def _name_in(reply: Reply) -> str:
    return str(read_arguments(reply[0], "s", reply[1])[0])
