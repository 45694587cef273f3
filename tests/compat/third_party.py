"""Transports of the shapes that people write for kombu, made for either library.

Each function returns a transport class built on the virtual layer of *lib*; nothing in it knows
which library that is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty
from typing import Any, Final

from tests.compat.programs.library import Library


class Backend:
    """Where the queues of a transport are kept, and what its hooks noted."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[Any]] = {}
        self.fanout: dict[str, set[str]] = {}
        self.notes: list[Any] = []


def _virtual(lib: Library) -> Any:
    return Library(f"{lib.root}.transport").virtual


def plain(lib: Library, backend: Backend) -> Any:
    """The least that there can be."""
    virtual = _virtual(lib)

    class Channel(virtual.Channel):  # type: ignore[misc, name-defined]
        def _new_queue(self, queue: str, **kwargs: Any) -> None:
            backend.queues.setdefault(queue, deque())

        def _has_queue(self, queue: str, **kwargs: Any) -> bool:
            return bool(backend.queues.get(queue))  # as where an empty list is no list

        def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
            backend.queues.setdefault(queue, deque()).append(message)

        def _get(self, queue: str, timeout: float | None = None) -> Any:
            try:
                return backend.queues[queue].popleft()
            except LookupError:
                raise Empty from None

        def _size(self, queue: str) -> int:
            return len(backend.queues.get(queue, ()))

        def _purge(self, queue: str) -> int:
            size = self._size(queue)
            backend.queues.pop(queue, None)
            return size

        def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
            backend.queues.pop(queue, None)

    class Transport(virtual.Transport):  # type: ignore[misc, name-defined]
        driver_type = "backend"
        driver_name = "backend"
        polling_interval = 0.01
        default_port = 4711

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.label = "a transport's own"

        def driver_version(self) -> str:
            return "1"

    Transport.Channel = Channel
    return Transport


def own_qos(lib: Library, backend: Backend) -> Any:
    """With a QoS that looks at what it has just answered, and says when more may come."""
    transport = plain(lib, backend)

    class QoS(_virtual(lib).QoS):  # type: ignore[misc]
        def append(self, message: Any, delivery_tag: Any) -> None:
            backend.notes.append("append")
            super().append(message, delivery_tag)

        def ack(self, delivery_tag: Any) -> None:
            backend.notes.append("ack")
            super().ack(delivery_tag)

        def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
            super().reject(delivery_tag, requeue=requeue)
            message = self._delivered[delivery_tag]
            backend.notes.append(("reject", message.delivery_info["routing_key"], requeue))

        def can_consume(self) -> bool:
            return len(self._delivered) - len(self._dirty) < 2

    class Channel(transport.Channel):  # type: ignore[misc, name-defined]
        pass

    Channel.QoS = QoS
    transport.Channel = Channel
    return transport


def bulk(lib: Library, backend: Backend) -> Any:
    """Takes several messages at once, and delivers them through the connection."""
    transport = plain(lib, backend)

    class Channel(transport.Channel):  # type: ignore[misc, name-defined]
        def _get_many(self, queues: Any, timeout: float | None = None) -> None:
            found = [
                (queue, backend.queues[queue]) for queue in queues if backend.queues.get(queue)
            ]
            if not found:
                raise Empty
            for queue, messages in found:
                wanted = self.qos.can_consume_max_estimate() or 10
                for _ in range(min(wanted, len(messages))):
                    self.connection._deliver(messages.popleft(), queue)

    transport.Channel = Channel
    return transport


def broadcasting(lib: Library, backend: Backend) -> Any:
    """With a fan-out of its own."""
    transport = plain(lib, backend)

    class Channel(transport.Channel):  # type: ignore[misc, name-defined]
        supports_fanout = True

        def _queue_bind(self, exchange: str, routing_key: str, pattern: Any, queue: str) -> None:
            if self.typeof(exchange).type == "fanout":
                backend.fanout.setdefault(exchange, set()).add(queue)

        def _put_fanout(self, exchange: str, message: Any, routing_key: str, **kwargs: Any) -> None:
            backend.notes.append(("fanout", exchange, routing_key))
            for queue in sorted(backend.fanout.get(exchange, ())):
                self._put(queue, message)

    base = _virtual(lib).Transport
    transport.Channel = Channel
    transport.implements = base.implements.extend(
        exchange_type=frozenset(["direct", "topic", "fanout"])
    )
    return transport


def own_methods(lib: Library, backend: Backend) -> Any:
    """Overrides the methods of channels, by kombu's order of arguments."""
    transport = plain(lib, backend)

    class Channel(transport.Channel):  # type: ignore[misc, name-defined]
        def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
            backend.notes.append(("consume", queue, no_ack, queue in self._tag_to_queue.values()))
            return super().basic_consume(queue, no_ack, *args, **kwargs)

        def basic_cancel(self, consumer_tag: str) -> Any:
            if consumer_tag in self._consumers:
                backend.notes.append(("cancel", self._tag_to_queue[consumer_tag]))
            return super().basic_cancel(consumer_tag)

        def basic_publish(
            self, message: Any, exchange: str, routing_key: str, **kwargs: Any
        ) -> Any:
            backend.notes.append(("publish", exchange, routing_key))
            message["headers"]["seen"] = True
            return super().basic_publish(message, exchange, routing_key, **kwargs)

        def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> Any:
            backend.notes.append(("ack", self.qos.get(delivery_tag).headers["seen"]))
            return super().basic_ack(delivery_tag, multiple)

        def queue_bind(
            self,
            queue: str,
            exchange: str | None = None,
            routing_key: str = "",
            arguments: Any = None,
            **kwargs: Any,
        ) -> Any:
            backend.notes.append(("bind", exchange, routing_key, self.connection.label))
            return super().queue_bind(queue, exchange, routing_key, arguments, **kwargs)

        def exchange_declare(
            self,
            exchange: str | None = None,
            type: str = "direct",
            durable: bool = False,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            backend.notes.append(("declare", exchange, type, durable))
            return super().exchange_declare(exchange, type, durable, *args, **kwargs)

        def queue_declare(
            self, queue: str | None = None, passive: bool = False, **kwargs: Any
        ) -> Any:
            backend.notes.append(("queue", queue, passive))
            return super().queue_declare(queue, passive, **kwargs)

        def drain_events(
            self, timeout: float | None = None, callback: Any = None, **kwargs: Any
        ) -> Any:
            if not self._consumers or not self.qos.can_consume():
                raise Empty
            return self._poll(self.cycle, callback, timeout=timeout)

        def _poll(self, cycle: Any, callback: Any, timeout: float | None = None) -> Any:
            return super()._poll(cycle, callback, timeout=timeout)

        def _reset_cycle(self) -> None:
            cycle = Library(f"{lib.root}.utils").scheduling.FairCycle
            self._cycle = cycle(self._fetch, self._active_queues, Empty)

        def _fetch(self, queue: str, callback: Any, **kwargs: Any) -> None:
            callback(self._get(queue), queue)

    transport.Channel = Channel
    return transport


def own_routing(lib: Library, backend: Backend) -> Any:
    """With an exchange type, a table of bindings and a way to look up of its own."""
    transport = plain(lib, backend)
    exchange = Library(f"{lib.root}.transport.virtual").exchange

    class Initial(exchange.DirectExchange):  # type: ignore[misc, name-defined]
        type = "x-initial"

        def lookup(self, table: Any, exchange: str, routing_key: str, default: Any) -> Any:
            return {queue for key, _, queue in table if key[:1] == routing_key[:1]}

    class Channel(transport.Channel):  # type: ignore[misc, name-defined]
        exchange_types: Any = {**transport.Channel.exchange_types, "x-initial": Initial}
        from_transport_options = (*transport.Channel.from_transport_options, "prefix")
        prefix = ""

        def _lookup(self, exchange: str, routing_key: str, default: Any = None) -> Any:
            backend.notes.append((self.prefix, exchange, routing_key))
            return super()._lookup(exchange, routing_key, default)

    transport.Channel = Channel
    return transport


def own_life(lib: Library, backend: Backend) -> Any:
    """With connecting, channels, messages and URLs of its own, and no pause between its looks."""
    base = plain(lib, backend)

    class Message(_virtual(lib).Message):  # type: ignore[misc]
        def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
            super().__init__(payload, channel=channel, **kwargs)
            backend.notes.append("message")

    class Channel(base.Channel):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            backend.notes.append(("channel", self.connection.client.virtual_host))

        def close(self) -> None:
            if not self.closed:
                backend.notes.append("channel closed")
            super().close()

    Channel.Message = Message

    class Transport(base):  # type: ignore[misc, valid-type]
        can_parse_url = True
        polling_interval = None
        connection_errors = (*base.connection_errors, LookupError)
        channel_errors = (*base.channel_errors, ArithmeticError)

        def establish_connection(self) -> Any:
            backend.notes.append("establish")
            return super().establish_connection()

        def verify_connection(self, connection: Any) -> bool:
            return connection is not None

        def create_channel(self, connection: Any) -> Any:
            return super().create_channel(connection)

        def close_connection(self, connection: Any) -> None:
            backend.notes.append("close")
            super().close_connection(connection)

        def drain_events(self, connection: Any, timeout: float | None = None) -> Any:
            return super().drain_events(connection, timeout=timeout)

        def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
            return "backend://masked"

        @property
        def default_connection_params(self) -> dict[str, Any]:
            return {"port": 4711, "hostname": "backend.example"}

    Transport.Channel = Channel
    return Transport


SHAPES: Final[list[Callable[[Library, Backend], Any]]] = [
    plain,
    own_qos,
    bulk,
    broadcasting,
    own_methods,
    own_routing,
    own_life,
]
