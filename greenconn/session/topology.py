"""The record of what a connection has declared, to declare it again on the next link.

Recorded are the declarations that the broker has confirmed, made by an entity, or a program
by hand on any channel.  Deleting, unbinding, and what the broker deletes by itself after that
(auto-delete) is forgotten; passive declarations, the broker's own exchanges (``amq.*``) and the default
bindings are not recorded.  The transport's channels call ``exchange_declared`` and so on; none of
that switches.

Before a new link is used, all is declared on it in the order exchanges, queues, bindings, without a wait
for each reply.  What is refused is logged and kept for the next link, and what was sent behind it is
sent again on another channel.  The broker may still hold the dead
connection.  An exclusive queue that it holds for that (405) is tried again in the background.  An
auto-delete queue that has consumers may go with them, and take exchanges along: then all is declared
once more a little later.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import gevent
from gevent import Greenlet

from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    IrrecoverableConnectionError,
    NotFound,
    ResourceLocked,
    error_text,
)
from greenconn.green.deadline import NEVER
from greenconn.green.retry import Backoff, RetryPolicy, attempts
from greenconn.green.supervisor import spawn
from greenconn.transport.base import is_open

if TYPE_CHECKING:
    from greenconn.transport.amqp.calls import Pipeline
    from greenconn.transport.amqp.channel import Channel
    from greenconn.transport.base import Link

logger = logging.getLogger("greenconn.session")

#: Exchanges, queues and bindings together that are kept; above it the oldest binding or queue goes.
LIMIT: Final = 50_000
#: For what another connection holds: about two minutes.  A dead one holds it until the broker has
#: noticed (by its heartbeats, one minute) that it is.
DECLARING: Final = RetryPolicy(first=0.2, longest=10.0, tries=17)
#: Declarations that are sent before the reply to the first of them.
IN_FLIGHT: Final = 64
#: How often the broker may end the whole connection for a declaration that it took before.
MAX_REFUSALS: Final = 2
#: For what met an exchange or queue that went at that moment: 0.02, 0.1 and 0.5 s.
GONE_MEANWHILE: Final = RetryPolicy(first=0.02, factor=5.0, longest=0.5, jitter=0.0, tries=4)
#: Former names of queues that the broker has named.
NAMES_KEPT: Final = 10_000


#: Methods that declare -> the keyword of the exchange or queue that is declared or bound.
_NAMES: Final = {
    "exchange_declare": "exchange",
    "queue_declare": "queue",
    "exchange_bind": "destination",
    "queue_bind": "queue",
}
#: Methods that bind -> the keyword of the exchange to which they bind.
_SOURCES: Final = {"exchange_bind": "source", "queue_bind": "exchange"}


class Declared:
    """A declaration that can be repeated: a method of a channel and its arguments.

    Arguments:
        method: a key of ``_NAMES``.
        name: the exchange or queue, for a binding its destination.
        arguments: the other arguments of the method.

    Attributes:
        is_server_named: the broker has chosen the queue's name, and chooses another one each time.
        consumers: number of consumers that the queue had when it was declared again.
        refusals: how often the broker has ended the whole connection for it.
    """

    __slots__ = ("arguments", "consumers", "is_server_named", "method", "name", "refusals")

    def __init__(self, method: str, name: str, **arguments: Any) -> None:
        table = arguments["arguments"]
        self.arguments = {**arguments, "arguments": dict(table) if table else table}
        self.method = method
        self.name = name
        self.is_server_named = False
        self.consumers = self.refusals = 0

    def __repr__(self) -> str:
        kind = "queue" if self.method.startswith("queue") else "exchange"
        if self.source is not None:
            key = self.arguments["routing_key"]
            return f"<binding of {kind} {self.name!r} to {self.source!r}: {key!r}>"
        if kind == "queue":
            return f"<queue {self.name!r}>"
        return f"<exchange {self.name!r} ({self.arguments['type']})>"

    @property
    def is_queue(self) -> bool:
        """Whether it declares a queue."""
        return self.method == "queue_declare"

    @property
    def auto_delete(self) -> bool:
        """Whether the broker deletes it when it is used no more."""
        return bool(self.arguments.get("auto_delete"))

    @property
    def source(self) -> str | None:
        """The exchange of a binding; None for what is no binding."""
        keyword = _SOURCES.get(self.method)
        return None if keyword is None else str(self.arguments[keyword])

    @property
    def key(self) -> tuple[str | None, str, str]:
        """The identity of a binding among those of the same destination."""
        table = repr(sorted((self.arguments["arguments"] or {}).items(), key=repr))
        return self.source, self.arguments["routing_key"], table

    def declare(self, channel: Channel) -> str:
        """Declare it; return the name that it has then.  May switch."""
        with channel.pipeline() as pipeline:
            self.send(pipeline)
            return self.receive(pipeline)

    def send(self, pipeline: Pipeline) -> None:
        """Send its declaration.  May switch, before the first byte only."""
        name = {_NAMES[self.method]: "" if self.is_server_named else self.name}
        pipeline.send(getattr(pipeline.channel, self.method), **name, **self.arguments)

    def receive(self, pipeline: Pipeline) -> str:
        """Wait for the reply; return the name that it has then.  May switch."""
        reply = pipeline.receive()
        if not self.is_queue:
            return self.name
        name, _, self.consumers = reply
        return str(name)


class Topology:
    """The record of one session.

    Arguments:
        where: returns the broker's URL with the password masked, for the log.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        self._where = where
        self._exchanges: dict[str, Declared] = {}
        self._queues: dict[str, Declared] = {}
        #: By method and destination, and there by :attr:`Declared.key`.
        self._bindings: dict[tuple[str, str], dict[Any, Declared]] = {}
        #: How many bindings there are to each exchange.
        self._bound_to: defaultdict[str, int] = defaultdict(int)
        #: Former name -> present name of queues that the broker has named.
        self._names: dict[str, str] = {}
        self._count = 0  # of bindings
        self._has_warned = False
        #: What is to be declared once more, when the link was opened.
        self._later: list[Declared] = []
        self._retry: Greenlet[..., Any] | None = None

    def __len__(self) -> int:
        return len(self._exchanges) + len(self._queues) + self._count

    def current_name(self, name: str) -> str:
        """Return the current name of a queue that the broker once called *name*; '' if unknown."""
        return self._names.get(name, "")

    # What the channels tell.  Nothing here switches.

    def exchange_declared(
        self, name: str, type: str, durable: bool, auto_delete: bool, arguments: Any
    ) -> None:
        """Note that this connection declared an exchange."""
        if name and not name.startswith("amq."):
            self._exchanges[name] = Declared(
                "exchange_declare",
                name,
                type=type,
                durable=durable,
                auto_delete=auto_delete,
                arguments=arguments,
            )
            self._drop_oldest()

    def exchange_deleted(self, name: str) -> None:
        """Forget a deleted exchange and its bindings."""
        self._exchanges.pop(name, None)
        if self._bound_to.get(name):
            for group in list(self._bindings.values()):
                for each in [each for each in group.values() if each.source == name]:
                    self._unbind(each)
        self._forget_destination("exchange_bind", name)

    def queue_declared(
        self,
        name: str,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Any,
        is_server_named: bool,
    ) -> None:
        """Note that this connection declared a queue; *is_server_named*: the broker named it."""
        known = self._queues.get(name)
        made = self._queues[name] = Declared(
            "queue_declare",
            name,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            arguments=arguments,
        )
        made.is_server_named = is_server_named or (known is not None and known.is_server_named)
        self._drop_oldest()

    def queue_deleted(self, name: str) -> None:
        """Forget a deleted queue and its bindings."""
        if self._queues.pop(name, None) is not None:
            self._names = {old: new for old, new in self._names.items() if new != name}
        self._forget_destination("queue_bind", name)

    def arguments_of(self, queue: str) -> Any:
        """Return the arguments with which a queue was declared; None if it is not recorded."""
        known = self._queues.get(queue)
        return None if known is None else known.arguments["arguments"]

    def is_auto_delete(self, queue: str) -> bool:
        """Return whether a queue that is recorded goes with its last consumer."""
        known = self._queues.get(queue)
        return known is not None and known.auto_delete

    def bound(
        self, to_queue: bool, destination: str, source: str, routing_key: str, arguments: Any
    ) -> None:
        """Note that a queue, or else an exchange, was bound to the exchange *source*."""
        if source:
            made = _binding(to_queue, destination, source, routing_key, arguments)
            group = self._bindings.setdefault((made.method, made.name), {})
            if made.key not in group:
                self._bound_to[source] += 1
                self._count += 1
            group[made.key] = made
            self._drop_oldest()

    def unbound(
        self, to_queue: bool, destination: str, source: str, routing_key: str, arguments: Any
    ) -> None:
        """Forget that binding: it is no more."""
        gone = _binding(to_queue, destination, source, routing_key, arguments)
        known = self._bindings.get((gone.method, gone.name), {}).get(gone.key)
        if known is not None:
            self._unbind(known)

    def clear(self) -> None:
        """Forget all: the connection was closed by us."""
        self.stop()
        self._exchanges.clear()
        self._queues.clear()
        self._bindings.clear()
        self._bound_to.clear()
        self._count = 0
        self._names.clear()

    def _forget_destination(self, method: str, name: str) -> None:
        for each in list(self._bindings.get((method, name), {}).values()):
            self._unbind(each)

    def _unbind(self, binding: Declared) -> None:
        place, source = (binding.method, binding.name), binding.source
        group = self._bindings.get(place, {})
        if source is None or group.pop(binding.key, None) is None:
            return
        if not group:
            del self._bindings[place]
        self._bound_to[source] -= 1
        self._count -= 1
        if not self._bound_to[source]:
            del self._bound_to[source]
            exchange = self._exchanges.get(source)
            if exchange is not None and exchange.auto_delete:
                # The broker deletes it when the last binding to it is gone.
                self.exchange_deleted(source)

    def _drop_oldest(self) -> None:
        if len(self) <= LIMIT:
            return
        if not self._has_warned:
            self._has_warned = True
            text = "more than %d declarations on one connection: the oldest are not recovered"
            spawn("log", logger.warning, text, LIMIT, extra={"connection": self._where()})
        if self._queues:
            self.queue_deleted(next(iter(self._queues)))
        elif self._bindings:
            self._unbind(next(iter(next(iter(self._bindings.values())).values())))
        else:
            self.exchange_deleted(next(iter(self._exchanges)))

    # On a new link

    def restore(self, link: object, open_channel: Callable[[], Any]) -> None:
        """Declare all again on *link*, which is not used yet.  May switch.

        Arguments:
            open_channel: opens one on it; a refusal costs a channel.

        Raises:
            ConnectionError: the link is of no use; it was dropped.
        """
        self._later = []
        if not _records_topology(link) or not len(self):
            return
        try:
            self._later = self._declare(list(self._all()), open_channel)
            if any(each.auto_delete and each.consumers for each in self._queues.values()):
                self._later = [each for each in self._all() if not each.is_server_named]
        except BaseException:
            link.collect()
            raise

    def record(self, link: object, open_channel: Callable[[], Any]) -> None:
        """Record what is declared on *link* from now on.  Never switches.

        What is to be declared once more is, in the background.
        """
        self.stop()
        if _records_topology(link):
            link.topology = self
            later, self._later = self._later, []
            if later:
                self._retry = spawn("declare-again", self._retry_declaring, later, open_channel)

    def _declare(self, records: list[Declared], open_channel: Callable[[], Any]) -> list[Declared]:
        """Declare *records*, and return those that have to be declared later.  May switch."""
        channels, declarations = _Channels(open_channel), _Declarations(records)
        renamed: dict[str, str] = {}
        locked, later = declarations.locked, declarations.later

        def note(record: Declared, name: str) -> None:
            record.refusals = 0
            if record.is_server_named:
                renamed[record.name] = name
                self._move_bindings(record.name, name)

        try:
            while declarations.waiting:
                try:
                    with channels.open().pipeline() as pipeline:
                        for record, name in declarations.exchange(pipeline):
                            note(record, name)
                    continue
                except Exception as exc:
                    failure = exc
                record = declarations.take_failed()
                try:
                    note(record, self._declare_again(record, channels, failure))
                except ResourceLocked:
                    later.append(record)
                    if record.is_queue:
                        locked.add(("queue_bind", record.name))
                except TimeoutError as exc:
                    # Its leader may be away.  That must not keep all from the link.
                    logger.warning(
                        "%r could not be declared again yet: %s",
                        record,
                        error_text(exc),
                        extra=self._fields(record),
                    )
                    later += (record, *declarations.waiting)
                    channels.drop()
                    break
                except (ChannelError, IrrecoverableConnectionError) as exc:
                    self._note_refusal(record, exc)
                finally:
                    del failure  # it refers to this frame
        finally:
            self._rename(renamed)
        channels.close()
        if locked and any(each.auto_delete for each in self._exchanges.values()):
            # With the locked queues the broker deletes exchanges that they alone keep, those that are
            # bound to these alone, and so on: after that all has to be there again.
            return [each for each in records if not each.is_server_named]
        return later

    def _note_refusal(self, record: Declared, exc: Exception) -> None:
        """Log that the broker closed a channel because of *record*; raise if it closed the link."""
        logger.warning(
            "%r could not be declared again: %s",
            record,
            error_text(exc),
            extra=self._fields(record),
        )
        if isinstance(exc, IrrecoverableConnectionError):
            record.refusals += 1
            if record.refusals >= MAX_REFUSALS:
                self._forget(record)  # it would end each link
            raise exc
        if record.is_server_named:
            self._forget(record)  # it has no name any more

    def _fields(self, record: Declared) -> dict[str, str]:
        """Return what a log record says of *record*."""
        queue = {"queue": record.name} if record.is_queue else {}
        return {"connection": self._where(), **queue}

    def _declare_again(self, record: Declared, channels: _Channels, failure: Exception) -> str:
        """Declare *record* once more where what it binds may have gone with the dead connection.

        Raises:
            Exception: *failure*, where it has another reason, or the last one.
        """

        def has_gone(exc: Exception) -> bool:
            ends = self._ends_of(record)
            return isinstance(exc, NotFound) and any(each.auto_delete for each in ends)

        for attempt in attempts(GONE_MEANWHILE, NEVER, has_gone, failure=failure):
            for each in self._ends_of(record):
                each.declare(channels.open())
            with attempt:
                return record.declare(channels.open())
        raise AssertionError("unreachable")

    def _ends_of(self, record: Declared) -> list[Declared]:
        """Return the ends of a binding that can be declared again by their names."""
        if record.source is None:
            return []
        others = self._queues if record.method == "queue_bind" else self._exchanges
        found = (self._exchanges.get(record.source), others.get(record.name))
        return [each for each in found if each is not None and not each.is_server_named]

    def stop(self) -> None:
        """Give up what is tried again: the link is gone.  Never switches."""
        greenlet, self._retry = self._retry, None
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill(block=False)

    def _retry_declaring(self, records: list[Declared], open_channel: Callable[[], Any]) -> None:
        for interval in Backoff(DECLARING):
            gevent.sleep(interval)
            records = [record for record in records if self._has(record)]
            try:
                records = self._declare(records, open_channel)
            except Exception as exc:
                logger.debug(
                    "%d entities could not be declared again: %s",
                    len(records),
                    error_text(exc),
                    extra={"connection": self._where()},
                )
                return  # the link was lost: all is declared on the next one
            if not records:
                return
        logger.warning(
            "%r is locked by another connection, and is not declared again",
            records,
            extra={"connection": self._where()},
        )

    def _has(self, record: Declared) -> bool:
        return any(each is record for each in self._all())

    def _all(self) -> Iterator[Declared]:
        yield from self._exchanges.values()
        yield from self._queues.values()
        for group in self._bindings.values():
            yield from group.values()

    def _forget(self, record: Declared) -> None:
        if record.source is not None:
            self._unbind(record)
        elif record.is_queue:
            self.queue_deleted(record.name)
        else:
            self.exchange_deleted(record.name)

    def _move_bindings(self, old: str, new: str) -> None:
        group = self._bindings.pop(("queue_bind", old), None)
        if group is not None:
            self._bindings["queue_bind", new] = group
            for binding in group.values():
                binding.name = new

    def _rename(self, renamed: dict[str, str]) -> None:
        """Follow queues that the broker has renamed."""
        if not renamed:
            return
        for old, new in renamed.items():
            if old in self._queues:  # else it was deleted meanwhile
                self._queues[old].name = new
        self._queues = {each.name: each for each in self._queues.values()}
        for former, present in self._names.items():
            self._names[former] = renamed.get(present, present)
        self._names.update(renamed)
        while len(self._names) > NAMES_KEPT:
            del self._names[next(iter(self._names))]


class _Declarations:
    """Records that are declared in their order.

    Arguments:
        records: those to declare.

    Attributes:
        waiting: those that are not sent yet.
        locked: bindings by method and destination that are not sent: another connection holds that.
        later: those that have to be declared later.
    """

    def __init__(self, records: list[Declared]) -> None:
        self.waiting = deque(records)
        self.locked: set[tuple[str, str]] = set()
        self.later: list[Declared] = []
        #: Those without a reply yet.
        self._sent: deque[Declared] = deque()
        # Where one has ended a connection, replies to those before it may have been lost with it.
        self._limit = 1 if any(each.refusals for each in records) else IN_FLIGHT

    def exchange(self, pipeline: Pipeline) -> Iterator[tuple[Declared, str]]:
        """Send what is waiting; yield each record with the name that it has then.  May switch.

        Raises:
            Exception: the error of the first that is left, see :meth:`take_failed`.
        """
        self._send(pipeline)
        while self._sent:
            name = self._sent[0].receive(pipeline)
            yield self._sent.popleft(), name
            self._send(pipeline)

    def take_failed(self) -> Declared:
        """Return the first without a reply; those behind it, of which none was declared, wait again."""
        self.waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        return self.waiting.popleft()

    def _send(self, pipeline: Pipeline) -> None:
        while self.waiting and len(self._sent) < self._limit:
            record = self.waiting[0]
            if record.source is not None:
                if any(each.is_queue for each in self._sent):
                    return  # its queue may be locked, or get another name
                if (record.method, record.name) in self.locked:
                    self.later.append(self.waiting.popleft())
                    continue
            try:
                record.send(pipeline)
            except (ChannelError, ConnectionError):
                if self._sent:
                    return  # the first one without a reply learns why
                raise
            self._sent.append(self.waiting.popleft())


class _Channels:
    """A channel at a time: a refusal costs one.

    Arguments:
        open_channel: opens one.
    """

    def __init__(self, open_channel: Callable[[], Any]) -> None:
        self._open = open_channel
        self._channel: Any = None

    def open(self) -> Any:
        """Return one that is open.  May switch."""
        if self._channel is None or not is_open(self._channel):
            self._channel = self._open()
        return self._channel

    def drop(self) -> None:
        """Use the last one no more: it waits for a reply, and would wait for that to its close."""
        self._channel = None

    def close(self) -> None:
        """Close the last one.  May switch."""
        if self._channel is not None and is_open(self._channel):
            self._channel.close()


def _binding(
    to_queue: bool, destination: str, source: str, routing_key: str, arguments: Any
) -> Declared:
    method = "queue_bind" if to_queue else "exchange_bind"
    made = {_SOURCES[method]: source, "routing_key": routing_key, "arguments": arguments}
    return Declared(method, destination, **made)


def _records_topology(link: object) -> TypeGuard[Link]:
    """Return whether the channels of *link* tell what they declare; one of kombu's is any object."""
    return bool(getattr(link, "records_topology", False))
