"""Exchanges, queues and bindings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenconn.common import maybe_declare
from greenconn.entity import Exchange, Queue, binding
from greenconn.messaging import Producer
from tests.quality.faults.interruptions.scene import Interruptible, Scene, call, ended
from tests.quality.faults.interruptions.targets import Target


class Pair:
    """A queue that is bound to an exchange, and another exchange."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.connection = scene.connection()
        channel = self.connection.default_channel
        options: dict[str, Any] = {"durable": False, "auto_delete": False}
        self.exchange = Exchange(f"{scene.name}-x", **options)(channel)
        self.other = Exchange(f"{scene.name}-y", **options)(channel)
        self.queue = Queue(f"{scene.name}-q", self.exchange, "key", **options)(channel)
        self.declare()

    def declare(self) -> None:
        """Declare all of it.  May switch."""
        self.connection.declared_entities.clear()
        self.other.declare()
        self.queue.declare()

    def works(self) -> None:
        """A message finds its way.  May switch."""
        self.declare()
        Producer(self.connection, self.exchange, "key").publish("x", mandatory=True)
        assert self.scene.take(self.connection, self.queue.name) == ["x"]
        self.scene.whole(self.connection)

    def close(self) -> None:
        """Delete all of it.  May switch."""
        for each in (self.queue, self.exchange, self.other):
            each.delete()


def enter(
    name: str,
    use: Callable[[Pair], Any],
    back: Callable[[Pair], Any] = lambda pair: None,
    fits: Callable[[Target], bool] = lambda target: True,
) -> None:
    """Enter a call that leaves the pair as it was, once *back* has been called."""

    def make(scene: Scene) -> Interruptible:
        pair = Pair(scene)
        try:
            while True:
                ended((yield lambda: use(pair)))
                use(pair)
                back(pair)
                pair.works()
        finally:
            pair.close()

    call("entity", name, fits)(make)


def declared_anew(pair: Pair) -> None:
    pair.connection.declared_entities.clear()
    maybe_declare(pair.queue, pair.connection.default_channel)


def retried(pair: Pair) -> None:
    pair.connection.declared_entities.clear()
    maybe_declare(pair.queue, pair.connection.default_channel, retry=True)


def bound_and_unbound(pair: Pair) -> None:
    binding(pair.other, "key").bind(pair.queue)
    binding(pair.other, "key").unbind(pair.queue)


enter("Queue.declare", lambda pair: pair.queue.declare())
enter("Queue.queue_declare", lambda pair: pair.queue.queue_declare())
enter("Queue.queue_declare(passive=True)", lambda pair: pair.queue.queue_declare(passive=True))
enter("Queue.queue_bind", lambda pair: pair.queue.queue_bind())
enter(
    "Queue.bind_to, unbind_from",
    lambda pair: (pair.queue.bind_to(pair.other, "key"), pair.queue.unbind_from(pair.other, "key")),
)
enter("Queue.queue_unbind", lambda pair: pair.queue.queue_unbind())
enter("Queue.purge", lambda pair: pair.queue.purge())
enter("Queue.delete", lambda pair: pair.queue.delete(), lambda pair: pair.queue.declare())
enter("Exchange.declare", lambda pair: pair.exchange.declare())
enter("Exchange.declare(passive=True)", lambda pair: pair.exchange.declare(passive=True))
enter("Exchange.delete", lambda pair: pair.other.delete(), lambda pair: pair.other.declare())
enter(
    "Exchange.bind_to, unbind_from",
    lambda pair: (
        pair.other.bind_to(pair.exchange, "more"),
        pair.other.unbind_from(pair.exchange, "more"),
    ),
    fits=lambda target: target.speaks_amqp,
)
enter("binding.bind, unbind", bound_and_unbound)
enter("maybe_declare", declared_anew)
enter("maybe_declare(retry=True)", retried)
