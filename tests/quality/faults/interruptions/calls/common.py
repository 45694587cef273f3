"""What programs are made of: mixins, mailboxes, loops over messages."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from typing import Any

import gevent

from greenconn.common import (
    Broadcast,
    QoS,
    collect_replies,
    drain_consumer,
    eventloop,
    insured,
    itermessages,
    send_reply,
)
from greenconn.entity import Exchange, Queue
from greenconn.messaging import Consumer, Producer
from greenconn.mixins import ConsumerMixin, ConsumerProducerMixin
from greenconn.pidbox import Mailbox
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import (
    SOON,
    Interruptible,
    Scene,
    call,
    ended,
    enter,
    ignore,
)


def mixin(scene: Scene, base: type[Any]) -> Interruptible:
    """A program that ends once it has handled a message."""
    connection = scene.connection()
    queue = scene.queue(connection)

    class Program(base):  # type: ignore[misc]  # which base it is, is an argument
        def __init__(self) -> None:
            self.connection = scene.connection(opened=False)

        def get_consumers(self, Consumer: Any, channel: Any) -> Any:  # noqa: N803
            return [Consumer([Queue(queue.name)], callbacks=[self.handle])]

        def handle(self, body: Any, message: Any) -> None:
            if base is ConsumerProducerMixin:
                self.producer.publish("answer", f"{queue.name}-nobody")
            message.ack()
            self.should_stop = True

    while True:
        queue.purge()
        Producer(connection).publish("x", queue.name)
        program = Program()
        run = yield program.run
        ended(run)
        until(lambda: scene.consumers(connection, queue.name) == 0)
        if not run.was_interrupted:
            assert queue.get() is None
        program = Program()
        Producer(connection).publish("y", queue.name)
        program.run()
        scene.whole(connection)


enter("program", "ConsumerMixin.run", mixin, ConsumerMixin)
enter("program", "ConsumerProducerMixin.run", mixin, ConsumerProducerMixin)


class Boxes:
    """A mailbox with a node that answers."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: list[Any] = []
        self.mailbox = Mailbox(scene.name, type="fanout")
        serving = scene.connection()
        node = self.mailbox(serving).Node("node", channel=serving.default_channel)
        node.handlers["ping"] = self.ping
        self.node = node
        self.consumer = node.listen()
        self._serving = gevent.spawn(self._serve, serving)
        self.connection = scene.connection()
        self.bound = self.mailbox(self.connection)

    def ping(self, state: Any, number: int = 0) -> Any:
        """The command."""
        self.seen.append(number)
        return {"pong": number}

    def _serve(self, connection: Any) -> None:
        while True:
            connection.drain_events()

    def whole(self) -> None:
        """The next command is answered with its own reply.  May switch."""
        for number in (101, 102):
            replies = self.bound.call(["node"], "ping", {"number": number}, timeout=SOON)
            assert replies == [{"node": {"pong": number}}], replies
        self.scene.whole(self.connection)

    def close(self) -> None:
        """End it.  May switch."""
        self._serving.kill()


def mailing(scene: Scene, use: Any) -> Interruptible:
    boxes, number = Boxes(scene), 0
    try:
        while True:
            number += 1
            ended((yield lambda: use(boxes, number)))
            boxes.whole()
            # Replies that nobody has asked for are kept for a while, those of 100 tickets at most.
            boxes.bound._replies._unclaimed.clear()
    finally:
        boxes.close()


@call("program", "Mailbox.call")
def mailbox_call(scene: Scene) -> Interruptible:
    def use(boxes: Boxes, number: int) -> None:
        replies = boxes.bound.call(["node"], "ping", {"number": number}, timeout=SOON)
        assert replies == [{"node": {"pong": number}}], replies

    yield from mailing(scene, use)


@call("program", "Mailbox.multi_call")
def mailbox_multi_call(scene: Scene) -> Interruptible:
    def use(boxes: Boxes, number: int) -> None:
        replies = boxes.bound.multi_call("ping", {"number": number}, timeout=SOON, limit=1)
        assert replies == [{"node": {"pong": number}}], replies

    yield from mailing(scene, use)


enter(
    "program",
    "Mailbox.cast",
    mailing,
    lambda boxes, number: boxes.bound.cast(["node"], "ping", {"number": number}),
)
enter(
    "program",
    "Mailbox.abcast",
    mailing,
    lambda boxes, number: boxes.bound.abcast("ping", {"number": number}),
)


@call("program", "Node.listen")
def listen(scene: Scene) -> Interruptible:
    mailbox = Mailbox(scene.name, type="fanout")
    connection = scene.connection()
    node = mailbox(connection).Node("node", channel=connection.default_channel)
    while True:
        run = yield node.listen
        if ended(run):
            run.result.cancel()
        node.listen().cancel()
        scene.whole(connection)


@call("program", "Broadcast")
def broadcast(scene: Scene) -> Interruptible:
    """One who listens hears what is said to all."""
    connection = scene.connection()
    exchange = Exchange(f"{scene.name}-all", "fanout")
    got: list[Any] = []

    def use() -> None:
        queue = Broadcast(f"{scene.name}-all", exchange=exchange)
        consumer = Consumer(connection, queue, callbacks=[lambda body, _: got.append(body)])
        with consumer:
            Producer(connection).publish("x", exchange=exchange, retry=True)
            while not got:
                connection.drain_events(timeout=SOON)

    while True:
        ended((yield use))
        connection.close()  # and what nobody wants any more is gone
        got.clear()
        use()
        assert got == ["x"]
        got.clear()
        scene.whole(connection)


def looping(scene: Scene, use: Any) -> Interruptible:
    """Loops that take two messages from a queue."""
    connection = scene.connection()
    queue = scene.queue(connection)

    def run_it() -> list[Any]:
        for number in range(2):
            Producer(connection).publish(number, queue.name)
        found: list[Any] = use(connection, queue)
        return found

    while True:
        run = yield run_it
        if ended(run):
            assert run.result == [0, 1]
        connection.close()  # gives back what was received
        scene.delete_in_the_end(queue.name)
        until(lambda: scene.consumers(connection, queue.name) == 0)
        connection.default_channel.queue_purge(queue.name)
        assert run_it() == [0, 1]
        scene.whole(connection)


@call("program", "eventloop")
def event_loop(scene: Scene) -> Interruptible:
    def use(connection: Any, queue: Any) -> list[Any]:
        got: list[Any] = []

        def receive(body: Any, message: Any) -> None:
            got.append(body)
            message.ack()

        with Consumer(connection, Queue(queue.name), callbacks=[receive]):
            for _ in eventloop(connection, limit=2, timeout=SOON):
                pass
        return got

    yield from looping(scene, use)


def handled(messages: Any) -> list[Any]:
    """The bodies of *messages*, which are acknowledged."""
    found = []
    for body, message in messages:
        message.ack()
        found.append(body)
    return found


enter(
    "program",
    "itermessages",
    looping,
    lambda connection, queue: handled(
        itermessages(
            connection, connection.default_channel, Queue(queue.name), limit=2, timeout=SOON
        )
    ),
)
enter(
    "program",
    "drain_consumer",
    looping,
    lambda connection, queue: handled(
        drain_consumer(Consumer(connection, Queue(queue.name)), limit=2, timeout=SOON)
    ),
)


@call("program", "send_reply, collect_replies")
def replies(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue = scene.queue(connection)
    exchange = Exchange("", "direct")
    producer, number = Producer(connection), 0

    class Request:
        content_type, content_encoding = "application/json", "utf-8"
        channel = connection.default_channel

        def __init__(self, number: int) -> None:
            self.properties = {"reply_to": queue.name, "correlation_id": str(number)}

    def use() -> list[Any]:
        send_reply(exchange, Request(number), [number], producer)
        with connection.channel() as channel:
            found = collect_replies(
                connection, channel, Queue(queue.name), limit=1, timeout=SOON, no_ack=False
            )
            return list(found)

    while True:
        number += 1
        run = yield use
        if ended(run):
            assert run.result == [[number]]
        until(lambda: scene.consumers(connection, queue.name) == 0)
        connection.default_channel.queue_purge(queue.name)
        assert use() == [[number]]
        scene.whole(connection)


@call("program", "QoS.update")
def qos_update(scene: Scene) -> Interruptible:
    connection = scene.connection()
    consumer = Consumer(connection, scene.queue(connection), callbacks=[ignore])
    qos, number = QoS(consumer.qos, 1), 1
    while True:
        number += 1
        qos.increment_eventually()
        ended((yield qos.update))
        assert qos.update() == qos.value
        scene.whole(connection)


@call("program", "insured")
def insurance(scene: Scene) -> Interruptible:
    template = scene.connection(opened=False)
    pool = template.Pool(2)
    connection = scene.connection()
    queue = scene.queue(connection)

    def count(channel: Any = None, connection: Any = None) -> Any:
        return channel.queue_declare(queue.name, passive=True).message_count

    try:
        while True:
            ended((yield lambda: insured(pool, count, (), {})))
            assert pool.stats()["in_use"] == 0
            assert insured(pool, count, (), {}) == 0
            scene.whole(connection)
    finally:
        pool.force_close_all()
