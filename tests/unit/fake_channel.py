"""A scripted channel, and the link, session and connection around it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

from amqp.protocol import queue_declare_ok_t

from greenconn.exceptions import RecoverableChannelError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.green.slot import SingleFlight
from greenconn.message import Message
from greenconn.transport.base import Link, to_rabbitmq_queue_arguments

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.connection import Connection as _Connection
else:
    _Connection = object


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What *function* returns, or the error that it raises: for greenlets that may fail."""
    try:
        return function(*args, **kwargs)
    except Exception as exc:
        return exc


class Call(NamedTuple):
    """One call of a channel method."""

    method: str
    arguments: dict[str, Any]


class FakeLink(Link):
    """One life of a fake connection."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.channels: list[FakeChannel] = []

    def channel(self) -> FakeChannel:
        channel = FakeChannel(self)
        self.channels.append(channel)
        return channel

    def lose(self, exc: BaseException | None = None) -> None:
        """Be lost, as when the broker restarts."""
        exc = exc or RecoverableConnectionError("the fake connection was lost")
        self.end(exc)
        for channel in self.channels:
            channel.end(exc)


class FakeChannel:
    """Notes what is asked of it, and does what a test scripted for a method (``script``)."""

    _last_id = 0

    def __init__(self, connection: Any) -> None:
        FakeChannel._last_id += 1
        self.channel_id = FakeChannel._last_id
        self.connection = connection
        self.events: dict[str, set[Callable[..., Any]]] = defaultdict(set)
        self.no_ack_consumers: set[str] | None = set()
        self.calls: list[Call] = []
        self.consumers: dict[str, Call] = {}
        self.waiting: list[Message] = []
        self.cause: BaseException | None = None
        self.named = 0
        #: How many consumers the next queues have that are declared; 0 after that.
        self.consumer_counts: list[int] = []
        #: By method: called before it; may raise, wait, or end the channel.
        self.script: dict[str, Callable[[], Any]] = {}

    @property
    def is_open(self) -> bool:
        return self.cause is None

    def end(self, exc: BaseException) -> None:
        """Be closed for the reason *exc*; consumers with a sink are told."""
        if self.cause is not None:
            return
        self.cause = exc
        consumers, self.consumers = self.consumers, {}
        for consumer in consumers.values():
            if consumer.arguments.get("sink") is not None:
                consumer.arguments["sink"].cancelled(exc)

    def close(self) -> None:
        self.end(RecoverableChannelError("closed by the test"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def of(self, *methods: str) -> list[Call]:
        """The calls of *methods*."""
        return [call for call in self.calls if call.method in methods]

    @property
    def methods(self) -> list[str]:
        """The names of the methods called, in order."""
        return [call.method for call in self.calls]

    def _note(self, method: str, **arguments: Any) -> None:
        if self.cause is not None:
            kind = (
                RecoverableChannelError if self.connection.is_open else RecoverableConnectionError
            )
            raise kind(f"fake channel {self.channel_id} is closed: {self.cause}")
        self.calls.append(Call(method, arguments))
        if method in self.script:
            self.script[method]()

    def exchange_declare(self, exchange: str, type: str, **arguments: Any) -> None:
        self._note("exchange_declare", exchange=exchange, type=type, **arguments)

    def exchange_delete(self, exchange: str, **arguments: Any) -> None:
        self._note("exchange_delete", exchange=exchange, **arguments)

    def exchange_bind(
        self, destination: str, source: str = "", routing_key: str = "", **arguments: Any
    ) -> None:
        self._note(
            "exchange_bind",
            destination=destination,
            source=source,
            routing_key=routing_key,
            **arguments,
        )

    def exchange_unbind(
        self, destination: str, source: str = "", routing_key: str = "", **arguments: Any
    ) -> None:
        self._note(
            "exchange_unbind",
            destination=destination,
            source=source,
            routing_key=routing_key,
            **arguments,
        )

    def queue_declare(self, queue: str = "", **arguments: Any) -> Any:
        self._note("queue_declare", queue=queue, **arguments)
        if arguments["nowait"]:
            return None
        name = queue
        if not name:
            self.named += 1
            name = f"amq.gen-{self.channel_id}-{self.named}"
        consumers = self.consumer_counts.pop(0) if self.consumer_counts else 0
        return queue_declare_ok_t(name, len(self.waiting), consumers)

    def queue_bind(
        self, queue: str, exchange: str = "", routing_key: str = "", **arguments: Any
    ) -> None:
        self._note(
            "queue_bind", queue=queue, exchange=exchange, routing_key=routing_key, **arguments
        )

    def queue_unbind(
        self, queue: str, exchange: str = "", routing_key: str = "", **arguments: Any
    ) -> None:
        self._note(
            "queue_unbind", queue=queue, exchange=exchange, routing_key=routing_key, **arguments
        )

    def queue_purge(self, queue: str = "", **arguments: Any) -> int:
        self._note("queue_purge", queue=queue, **arguments)
        return 3

    def queue_delete(self, queue: str = "", **arguments: Any) -> int:
        self._note("queue_delete", queue=queue, **arguments)
        return 2

    def prepare_queue_arguments(
        self, arguments: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[str, Any]:
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: MutableMapping[str, Any] | None = None,
        properties: MutableMapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {
            "body": body,
            "priority": priority,
            "content_type": content_type,
            "content_encoding": content_encoding,
            "headers": headers,
            "properties": dict(properties or {}),
        }

    def basic_publish(
        self,
        message: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> Any:
        self._note(
            "basic_publish",
            message=message,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=mandatory,
            immediate=immediate,
            timeout=timeout,
            confirm_timeout=confirm_timeout,
        )
        return self.channel_id

    basic_publish_confirm = basic_publish

    def basic_consume(self, queue: str = "", **arguments: Any) -> str:
        tag: str = arguments["consumer_tag"]
        self._note("basic_consume", queue=queue, **arguments)
        assert tag not in self.consumers, f"tag {tag} is in use"
        self.consumers[tag] = self.calls[-1]
        return tag

    def basic_cancel(self, consumer_tag: str, nowait: bool = False) -> None:
        self._note("basic_cancel", consumer_tag=consumer_tag, nowait=nowait)
        self.consumers.pop(consumer_tag, None)

    def basic_get(self, queue: str = "", **arguments: Any) -> Message | None:
        self._note("basic_get", queue=queue, **arguments)
        return self.waiting.pop(0) if self.waiting else None

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        self._note("basic_qos", qos=(prefetch_size, prefetch_count, apply_global))

    def basic_recover(self, requeue: bool = False) -> None:
        self._note("basic_recover", requeue=requeue)

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        self._note("basic_ack", delivery_tag=delivery_tag)

    def basic_reject(self, delivery_tag: Any, requeue: bool) -> None:
        self._note("basic_reject", delivery_tag=delivery_tag, requeue=requeue)

    def flow(self, active: bool) -> None:
        self._note("flow", active=active)

    def message_to_python(self, raw_message: Any) -> Any:
        return raw_message

    def after_reply_message_received(self, queue: str) -> None:
        self._note("after_reply_message_received", queue=queue)

    def message(self, body: Any = b'{"a": 1}', **details: Any) -> Message:
        """A message of this channel."""
        details.setdefault("content_type", "application/json")
        return Message(body, channel=self, content_encoding="utf-8", **details)

    def deliver(self, message: Message, tag: str | None = None) -> None:
        """Have the broker deliver *message* to consumer *tag*, or to the only one."""
        [found] = [tag] if tag is not None else self.consumers
        consumer = self.consumers[found].arguments
        if consumer.get("sink") is not None:
            consumer["sink"].deliver(message)
        else:
            self.connection.events.put((consumer["callback"], message))

    def cancel_by_broker(self, tag: str, exc: BaseException) -> None:
        """Have the broker cancel a consumer."""
        consumer = self.consumers.pop(tag).arguments
        if consumer.get("sink") is not None:
            consumer["sink"].cancelled(exc)
        else:
            self.connection.events.put((consumer["on_cancel"], tag))


class FakeUtility:
    """One channel for what may fail, opened anew when it is closed."""

    def __init__(self, client: FakeClient) -> None:
        self._client = client
        self._channel: FakeChannel | None = None

    @property
    def channel(self) -> FakeChannel:
        """The channel that comes next."""
        if self._channel is None or not self._channel.is_open:
            self._channel = self._client.channel()
        return self._channel

    def run(self, function: Callable[[Any], Any], deadline: Deadline) -> Any:
        return function(self.channel)


class FakeSession:
    """Keeps members, and the successors of channels."""

    def __init__(self, client: FakeClient) -> None:
        self.client = client
        self.utility = FakeUtility(client)
        self.members: list[Any] = []
        self._successors: dict[Any, Any] = {}

    @property
    def generation(self) -> int:
        return self.client.lives

    @property
    def lost(self) -> BaseException | None:
        return None if self.client.link is None else self.client.link.lost

    @property
    def may_be_lost(self) -> bool:
        return self.lost is not None

    def add(self, member: Any) -> None:
        if member not in self.members:
            self.members.append(member)

    def discard(self, member: Any) -> None:
        if member in self.members:
            self.members.remove(member)

    def successor(self, old: Any, deadline: Deadline | None = None) -> Any:
        if old.is_open:
            return old
        if old in self.client.defaults:
            return self.client.default_channel
        found = self._successors.get(old)
        if found is None or not found.is_open:
            found = self._successors[old] = self.client.channel()
        return found

    def recover(self) -> None:
        """Open a link again, and restore all members."""
        self.client.reconnect()
        for member in list(self.members):
            member.recover(Deadline(5.0))


class FakeClient(_Connection):
    """A connection whose links and channels are fake."""

    connection_errors = (RecoverableConnectionError, OSError)
    hostname: str | None = "fake"
    port: int | None = None
    userid: str | None = None
    virtual_host = "/"
    ssl: Any = False
    connect_timeout: float | None = 5.0
    heartbeat: float | None = None
    transport: Any = None

    def as_uri(self, *args: Any, **kwargs: Any) -> str:
        return "fake://"

    def clone(self, **changes: Any) -> FakeClient:
        return FakeClient()

    def close(self) -> None:
        if self.link is not None:
            self.link.close()

    def __init__(self, *, has_session: bool = True) -> None:
        self.transport_options: dict[str, Any] = {}
        self.declared_entities: set[Any] = set()
        self.declare_flight = SingleFlight("declare")
        self.defaults: list[FakeChannel] = []
        self.link: FakeLink | None = None
        self.lives = 0
        self.ensured: list[dict[str, Any]] = []
        self.ensured_connection: list[dict[str, Any]] = []
        if has_session:
            self.session: Any = FakeSession(self)

    @property
    def connected(self) -> bool:
        return self.link is not None and self.link.is_open

    def reconnect(self) -> FakeLink:
        """Return the open link, or begin another life."""
        if self.link is None or not self.link.is_open:
            self.link = FakeLink(self)
            self.lives += 1
            self.declared_entities.clear()
            self.declare_flight = SingleFlight("declare")
        return self.link

    def ensure_connection(self, *args: Any, **policy: Any) -> Self:
        self.ensured_connection.append(policy)
        self.reconnect()
        return self

    def channel(self) -> FakeChannel:
        return self.reconnect().channel()

    @property
    def default_channel(self) -> FakeChannel:
        link = self.reconnect()
        if not self.defaults or not self.defaults[-1].is_open:
            self.defaults.append(link.channel())
        return self.defaults[-1]

    def drain_events(self, timeout: Any = None, **kwargs: Any) -> None:
        self.reconnect().drain(Deadline(timeout))

    def ensure(
        self, obj: Any, fun: Callable[..., Any], *args: Any, **policy: Any
    ) -> Callable[..., Any]:
        """As kombu's, without pauses; what was asked for is noted."""
        max_retries = policy.setdefault("max_retries", None)
        self.ensured.append({"obj": obj, **policy})

        def ensured(*args: Any, **kwargs: Any) -> Any:
            retries = 0
            while True:
                try:
                    return fun(*args, **kwargs)
                except RecoverableConnectionError:
                    if max_retries is not None and retries >= max_retries:
                        raise
                    self.reconnect()
                    obj.revive(self.default_channel)
                except RecoverableChannelError:
                    if max_retries is not None and retries >= max_retries:
                        raise
                retries += 1

        return ensured
