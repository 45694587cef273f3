"""A channel of the scripted AMQP peer: what is asked of it, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from struct import pack
from typing import Any, Protocol

from amqp import spec
from amqp.basic_message import Message as Properties
from amqp.serialization import dumps

from greenconn.wire.amqp import method_frame
from tests.quality.faults.interruptions.model import Consumer, Message, Model, Queue, Refused

REPLY_TO = "amq.rabbitmq.reply-to"

Method = tuple[int, int]
Answer = tuple[Method, str, tuple[Any, ...]] | None


class Connection(Protocol):
    """The peer's end of the connection: where bytes go."""

    model: Model
    out: bytes


class Channel:
    """The peer's end of a channel."""

    def __init__(self, end: Connection, number: int) -> None:
        self.end = end
        self.number = number
        self.prefetch = 0
        #: What was delivered and is not settled, with the queue that it came from.
        self.unacked: dict[int, tuple[Message, Queue]] = {}
        self.consumers: dict[str, tuple[Consumer, Queue]] = {}
        self.reply_key: str | None = None
        self.reply_tag = ""
        self.is_closing = False
        self.last_queue = ""
        self.confirms: count[int] | None = None
        self._tags = count(1)

    # What the model calls.

    def has_room(self) -> bool:
        """Whether one more message may be delivered that needs an ack."""
        return not self.prefetch or len(self.unacked) < self.prefetch

    def deliver(self, consumer: Consumer, message: Message) -> None:
        """Send a message to a consumer."""
        tag = next(self._tags)
        if not consumer.no_ack:
            self.unacked[tag] = (message, self.consumers[consumer.tag][1])
        self._deliver(consumer.tag, tag, message)

    def _deliver(self, consumer_tag: str, tag: int, message: Message) -> None:
        arguments = (consumer_tag, tag, message.redelivered, message.exchange, message.key)
        self.send(spec.Basic.Deliver, "sLbss", arguments)
        self.send_content(message)

    def cancelled(self, consumer: Consumer) -> None:
        """The consumer's queue was deleted."""
        del self.consumers[consumer.tag]
        self.send(spec.Basic.Cancel, "sb", (consumer.tag, True))

    # What it sends.

    def send(self, method: Method, form: str = "", arguments: tuple[Any, ...] = ()) -> None:
        """Send a method."""
        self.end.out += method_frame(self.number, method, dumps(form, arguments) if form else b"")

    def send_content(self, message: Message) -> None:
        """Send the content of the method that was sent just before."""
        header, body = message.header, message.body
        self.end.out += pack(">BHI", 2, self.number, len(header)) + header + b"\xce"
        if body:
            self.end.out += pack(">BHI", 3, self.number, len(body)) + body + b"\xce"

    def refuse(self, refused: Refused, method: Method) -> None:
        """Close it for an error."""
        self.leave()
        self.is_closing = True
        self.send(spec.Channel.Close, "BsBB", (refused.code, refused.text, *method))

    def leave(self) -> None:
        """Give back what it holds."""
        for tag in list(self.consumers):
            self.basic_cancel(tag, True)
        if self.reply_key is not None:
            self.end.model.repliers.pop(self.reply_key, None)
        self.give_back(list(self.unacked))

    def give_back(self, tags: list[int]) -> None:
        """Put messages back where they were."""
        queues = {}
        for tag in sorted(tags, reverse=True):
            message, queue = self.unacked.pop(tag)
            message.redelivered = True
            queue.messages.appendleft(message)
            queues[queue.name] = queue
        for queue in queues.values():
            queue.push()

    # What it is asked.  Each takes the arguments of the method behind the reserved ones.

    def queue_declare(
        self,
        name: str,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        nowait: bool,
        arguments: dict[str, Any],
    ) -> Answer:
        model = self.end.model
        if passive:
            queue = model.queue(name, self.end)
        else:
            queue = model.declare(name, self.end, exclusive, auto_delete)
        self.last_queue = queue.name
        counts = (queue.name, len(queue.messages), len(queue.consumers))
        return None if nowait else (spec.Queue.DeclareOk, "sll", counts)

    def queue_bind(
        self, queue: str, exchange: str, key: str, nowait: bool, arguments: dict[str, Any]
    ) -> Answer:
        self.end.model.exchange(exchange)
        name = self.queue(queue).name
        self.end.model.bindings.add((exchange, key, "queue", name))
        return None if nowait else (spec.Queue.BindOk, "", ())

    def queue_unbind(
        self, queue: str, exchange: str, key: str, arguments: dict[str, Any]
    ) -> Answer:
        self.end.model.bindings.discard((exchange, key, "queue", queue or self.last_queue))
        return spec.Queue.UnbindOk, "", ()

    def queue_purge(self, queue: str, nowait: bool) -> Answer:
        found = self.queue(queue)
        number = len(found.messages)
        found.messages.clear()
        return None if nowait else (spec.Queue.PurgeOk, "l", (number,))

    def queue_delete(self, queue: str, if_unused: bool, if_empty: bool, nowait: bool) -> Answer:
        found = self.end.model.queues.get(queue or self.last_queue)
        number = self.end.model.delete(found) if found is not None else 0
        return None if nowait else (spec.Queue.DeleteOk, "l", (number,))

    def queue(self, name: str) -> Queue:
        """The queue of that name; of none, the one that was declared last."""
        return self.end.model.queue(name or self.last_queue, self.end)

    def exchange_declare(
        self,
        name: str,
        kind: str,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        nowait: bool,
        arguments: dict[str, Any],
    ) -> Answer:
        self.end.model.declare_exchange(name, kind, passive)
        return None if nowait else (spec.Exchange.DeclareOk, "", ())

    def exchange_delete(self, name: str, if_unused: bool, nowait: bool) -> Answer:
        self.end.model.delete_exchange(name)
        return None if nowait else (spec.Exchange.DeleteOk, "", ())

    def exchange_bind(
        self, destination: str, source: str, key: str, nowait: bool, arguments: dict[str, Any]
    ) -> Answer:
        for name in (destination, source):
            self.end.model.exchange(name)
        self.end.model.bindings.add((source, key, "exchange", destination))
        return None if nowait else (spec.Exchange.BindOk, "", ())

    def exchange_unbind(
        self, destination: str, source: str, key: str, nowait: bool, arguments: dict[str, Any]
    ) -> Answer:
        self.end.model.bindings.discard((source, key, "exchange", destination))
        return None if nowait else (spec.Exchange.UnbindOk, "", ())

    def basic_qos(self, size: int, number: int, is_global: bool) -> Answer:
        self.prefetch = number
        self.send(spec.Basic.QosOk)
        for _, queue in list(self.consumers.values()):
            queue.push()
        return None

    def basic_consume(
        self,
        queue: str,
        tag: str,
        no_local: bool,
        no_ack: bool,
        exclusive: bool,
        nowait: bool,
        arguments: dict[str, Any],
    ) -> Answer:
        model = self.end.model
        if queue == REPLY_TO:
            self.reply_key, self.reply_tag = f"{REPLY_TO}.{model.number()}", tag
            model.repliers[self.reply_key] = self._reply
            return spec.Basic.ConsumeOk, "s", (tag,)
        found = self.queue(queue)
        tag = tag or f"amq.ctag-{model.number()}"
        consumer = Consumer(tag, self, no_ack)
        self.consumers[tag] = (consumer, found)
        if not nowait:
            self.send(spec.Basic.ConsumeOk, "s", (tag,))
        found.consumers.append(consumer)
        found.push()
        return None

    def _reply(self, message: Message) -> None:
        self._deliver(self.reply_tag, next(self._tags), message)

    def basic_cancel(self, tag: str, nowait: bool) -> Answer:
        held = self.consumers.pop(tag, None)
        if held is not None:
            self.end.model.leave(held[1], held[0])
        return None if nowait else (spec.Basic.CancelOk, "s", (tag,))

    def basic_get(self, queue: str, no_ack: bool) -> Answer:
        found = self.queue(queue)
        if not found.messages:
            return spec.Basic.GetEmpty, "s", ("",)
        message, tag = found.messages.popleft(), next(self._tags)
        if not no_ack:
            self.unacked[tag] = (message, found)
        arguments = (tag, message.redelivered, message.exchange, message.key, len(found.messages))
        self.send(spec.Basic.GetOk, "Lbssl", arguments)
        self.send_content(message)
        return None

    def basic_ack(self, tag: int, multiple: bool) -> Answer:
        queues = {self.unacked.pop(each)[1] for each in self._tags_to(tag, multiple)}
        self._push(queues)
        return None

    def basic_reject(self, tag: int, requeue: bool) -> Answer:
        return self.basic_nack(tag, False, requeue)

    def basic_nack(self, tag: int, multiple: bool, requeue: bool) -> Answer:
        tags = self._tags_to(tag, multiple)
        if requeue:
            self.give_back(tags)
        else:
            self._push({self.unacked.pop(each)[1] for each in tags})
        return None

    def _push(self, queues: set[Queue]) -> None:
        # Room for one is room for all queues that this channel consumes from.
        for queue in [*queues, *(queue for _, queue in list(self.consumers.values()))]:
            queue.push()

    def _tags_to(self, tag: int, multiple: bool) -> list[int]:
        tags = [
            each for each in self.unacked if each == tag or (multiple and each <= (tag or each))
        ]
        if not tags and tag:
            raise Refused(406, f"PRECONDITION_FAILED - unknown delivery tag {tag}")
        return tags

    def basic_recover(self, requeue: bool) -> Answer:
        self.send(spec.Basic.RecoverOk)
        self.give_back(list(self.unacked))
        return None

    def confirm_select(self, nowait: bool) -> Answer:
        self.confirms = self.confirms or count(1)
        return None if nowait else (spec.Confirm.SelectOk, "", ())

    def channel_flow(self, active: bool) -> Answer:
        return spec.Channel.FlowOk, "b", (active,)

    def tx_select(self) -> Answer:
        return spec.Tx.SelectOk, "", ()

    def tx_commit(self) -> Answer:
        return spec.Tx.CommitOk, "", ()

    def tx_rollback(self) -> Answer:
        return spec.Tx.RollbackOk, "", ()

    def publish(self, exchange: str, key: str, mandatory: bool, header: bytes, body: bytes) -> None:
        """Take a message."""
        message = Message(exchange, key, self._with_reply_key(header), body)
        is_routed = self.end.model.publish(message)
        if mandatory and not is_routed:
            arguments = (312, "NO_ROUTE", exchange, key)
            self.send(spec.Basic.Return, "Bsss", arguments)
            self.send_content(message)
        if self.confirms is not None:
            self.send(spec.Basic.Ack, "Lb", (next(self.confirms), False))

    def _with_reply_key(self, header: bytes) -> bytes:
        if self.reply_key is None or REPLY_TO.encode() not in header:
            return header
        properties = Properties()
        properties._load_properties(60, header, 12)
        properties.properties["reply_to"] = self.reply_key
        packed: bytes = properties._serialize_properties()
        return header[:12] + packed


#: The methods, what their arguments look like behind what is reserved, and how many those are.
METHODS: dict[Method, tuple[Callable[..., Answer], str, int]] = {
    spec.Queue.Declare: (Channel.queue_declare, "BsbbbbbF", 1),
    spec.Queue.Bind: (Channel.queue_bind, "BsssbF", 1),
    spec.Queue.Unbind: (Channel.queue_unbind, "BsssF", 1),
    spec.Queue.Purge: (Channel.queue_purge, "Bsb", 1),
    spec.Queue.Delete: (Channel.queue_delete, "Bsbbb", 1),
    spec.Exchange.Declare: (Channel.exchange_declare, "BssbbbbbF", 1),
    spec.Exchange.Delete: (Channel.exchange_delete, "Bsbb", 1),
    spec.Exchange.Bind: (Channel.exchange_bind, "BsssbF", 1),
    spec.Exchange.Unbind: (Channel.exchange_unbind, "BsssbF", 1),
    spec.Basic.Qos: (Channel.basic_qos, "lBb", 0),
    spec.Basic.Consume: (Channel.basic_consume, "BssbbbbF", 1),
    spec.Basic.Cancel: (Channel.basic_cancel, "sb", 0),
    spec.Basic.Get: (Channel.basic_get, "Bsb", 1),
    spec.Basic.Ack: (Channel.basic_ack, "Lb", 0),
    spec.Basic.Reject: (Channel.basic_reject, "Lb", 0),
    spec.Basic.Nack: (Channel.basic_nack, "Lbb", 0),
    spec.Basic.Recover: (Channel.basic_recover, "b", 0),
    spec.Confirm.Select: (Channel.confirm_select, "b", 0),
    spec.Channel.Flow: (Channel.channel_flow, "b", 0),
    spec.Tx.Select: (Channel.tx_select, "", 0),
    spec.Tx.Commit: (Channel.tx_commit, "", 0),
    spec.Tx.Rollback: (Channel.tx_rollback, "", 0),
}
