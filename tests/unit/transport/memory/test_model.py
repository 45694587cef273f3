"""Anything, in any order, against a model that only knows where each message should be."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from greenconn.exceptions import RecoverableConnectionError
from greenconn.transport.memory import Channel, MemoryLink
from greenconn.transport.memory.broker import Broker
from tests.tiny_client import TinyClient

QUEUES = ("one", "two", "three")
#: Messages that "one" may hold; what is too many at the head goes to "three", rejected ones too.
LIMIT = 4


class Held:
    """A message that somebody has, by the model."""

    def __init__(self, number: int, queue: str, message: Any, owner: Taker | Getter) -> None:
        self.number = number
        self.queue = queue
        self.message = message
        self.owner = owner


class Getter:
    """A channel as the owner of what it got without a consumer."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.limit = 0
        self.no_ack = False


class Taker:
    """A consumer: it tells the model at once what it was given."""

    taken: Any = None

    def __init__(
        self, model: Model, channel: Channel, queue: str, limit: int, no_ack: bool
    ) -> None:
        self.model = model
        self.channel = channel
        self.queue = queue
        self.limit = 0 if no_ack else limit
        self.no_ack = no_ack
        self.is_active = True
        self.tag = ""

    def deliver(self, message: Any) -> None:
        self.model.delivered(self, message)

    def cancelled(self, exc: BaseException) -> None:
        self.is_active = False

    def requeue_unseen(self) -> None:
        raise AssertionError("a transport that does not count it has no use for it")


class Model:
    """The broker, and where each message should be."""

    def __init__(self) -> None:
        self.broker = Broker("model")
        self.links = [MemoryLink(TinyClient(), self.broker) for _ in range(2)]
        self.keeper = Channel(MemoryLink(TinyClient(), self.broker))
        for queue in QUEUES:
            self.keeper.queue_declare(queue, arguments=ARGUMENTS.get(queue))
        for queue in QUEUES[:2]:
            self.keeper.queue_bind(queue, "amq.topic", f"all.{queue}.#")
            self.keeper.queue_bind(queue, "amq.topic", "all")
        self.last = 0
        #: By queue: the numbers that wait, and whether they were delivered before.
        self.waiting: dict[str, dict[int, bool]] = {queue: {} for queue in QUEUES}
        self.held: list[Held] = []
        self.active: list[Taker] = []
        self.channels: list[Channel] = []
        for link in (0, 1):
            self.open_channel(link)
        #: Places in "three" are new ones: number -> place.
        self.place: dict[tuple[str, int], int] = {}

    # -- the model

    def enter(self, queue: str, number: int) -> None:
        """A message comes to the end of a queue."""
        self.last += 1
        self.place[queue, number] = self.last
        self.waiting[queue][number] = False

    def first(self, queue: str) -> int:
        return min(self.waiting[queue], key=lambda number: self.place[queue, number])

    def delivered(self, taker: Taker, message: Any) -> None:
        queue, number = taker.queue, int(message.body)
        # What was too many in "one" may have gone before it, or is it.
        while (queue == "one" and self.first("one") != number) or (
            queue == "three" and number not in self.waiting["three"]
        ):
            assert len(self.waiting["one"]) > LIMIT
            self.bury(self.first("one"), "one")
        assert number == self.first(queue)
        assert message.delivery_info["redelivered"] == self.waiting[queue].pop(number)
        assert message.delivery_info["consumer_tag"] == taker.tag or not taker.tag
        if not taker.no_ack:
            self.held.append(Held(number, queue, message, taker))
        if taker.limit:
            mine = [each for each in self.held if each.owner is taker]
            assert len(mine) <= taker.limit

    def bury_overflow(self) -> None:
        """What is too many in "one" has gone."""
        while len(self.waiting["one"]) > LIMIT:
            self.bury(self.first("one"), "one")

    def bury(self, number: int, queue: str) -> None:
        self.waiting[queue].pop(number, None)
        if queue == "one":
            self.enter("three", number)

    def requeue_unseen(self, held: list[Held]) -> None:
        for each in held:
            self.held.remove(each)
            self.waiting[each.queue][each.number] = True

    # -- what happens

    def open_channel(self, link: int) -> None:
        self.channels.append(Channel(self.links[link % 2]))

    def publish(self, where: int) -> None:
        self.last += 1
        number = self.last
        message = self.keeper.prepare_message(str(number))
        queues = [*QUEUES, "both"]
        queue = queues[where % 4]
        for each in QUEUES[:2] if queue == "both" else [queue]:
            self.enter(each, number)
        if queue == "three":
            self.keeper.basic_publish(message, "", queue)
        else:
            key = "all" if queue == "both" else f"all.{queue}"
            self.keeper.basic_publish(message, "amq.topic", key)
        self.bury_overflow()

    def consume(self, which: int) -> None:
        channel = self.channels[which % len(self.channels)]
        limit, no_ack = which % 4, which % 5 == 0
        taker = Taker(self, channel, QUEUES[which % 3], limit, no_ack)
        channel.basic_qos(0, limit, False)
        self.active.append(taker)
        taker.tag = channel.basic_consume(taker.queue, no_ack=no_ack, sink=taker)

    def get(self, which: int) -> None:
        channel, queue = self.channels[which % len(self.channels)], QUEUES[which % 3]
        message = channel.basic_get(queue)
        if message is None:
            assert not self.waiting[queue]
            return
        number = int(message.body)
        assert number == self.first(queue)
        assert message.delivery_info["redelivered"] == self.waiting[queue].pop(number)
        self.held.append(Held(number, queue, message, Getter(channel)))

    def ack(self, which: int) -> None:
        if self.held:
            held = self.held.pop(which % len(self.held))
            held.message.ack()

    def reject(self, which: int) -> None:
        if self.held:
            held = self.held.pop(which % len(self.held))
            self.bury(held.number, held.queue)
            held.message.reject()

    def requeue(self, which: int) -> None:
        if self.held:
            held = self.held[which % len(self.held)]
            self.requeue_unseen([held])
            held.message.requeue()
            self.bury_overflow()

    def cancel(self, which: int) -> None:
        if self.active:
            taker = self.active.pop(which % len(self.active))
            taker.channel.basic_cancel(taker.tag)

    def recover(self, which: int) -> None:
        channel = self.channels[which % len(self.channels)]
        self.requeue_unseen([each for each in self.held if each.owner.channel is channel])
        channel.basic_recover(requeue=True)
        self.bury_overflow()

    def close_channel(self, which: int) -> None:
        if len(self.channels) > 1:
            self.end(self.channels[which % len(self.channels)])

    def cut_link(self, which: int) -> None:
        link = self.links[which % 2]
        # One after the other: what the first gives back may go to a consumer of the second.
        for channel in [each for each in self.channels if each.connection is link]:
            self.end(channel)
        link.end(RecoverableConnectionError("cut"))
        self.links[which % 2] = MemoryLink(TinyClient(), self.broker)
        self.open_channel(which)

    def end(self, channel: Channel) -> None:
        self.channels.remove(channel)
        self.active = [each for each in self.active if each.channel is not channel]
        self.requeue_unseen([each for each in self.held if each.owner.channel is channel])
        channel.close()
        self.bury_overflow()

    def purge(self, which: int) -> None:
        queue = QUEUES[which % 3]
        assert self.keeper.queue_purge(queue) == len(self.waiting[queue])
        self.waiting[queue].clear()

    # -- what holds

    def check(self) -> None:
        """Everything is where it should be, and nothing waits while somebody has room."""
        for name, numbers in self.waiting.items():
            store = self.broker.queues[name].store
            found = {int(each.envelope["body"]): each.redelivered for each in store}
            assert list(found) == sorted(numbers, key=lambda number: self.place[name, number])
            assert found == numbers
        assert sum(len(each.deliveries.unacked) for each in self.channels) == len(self.held)
        for taker in self.active:
            mine = [each for each in self.held if each.owner is taker]
            if not taker.limit or len(mine) < taker.limit:
                assert not self.waiting[taker.queue]


ARGUMENTS: dict[str, dict[str, Any]] = {
    "one": {
        "x-max-length": LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "three",
    }
}

#: What may happen; the frequent ones stand here more than once.
STEPS = (
    *["publish"] * 6,
    *["consume"] * 3,
    *["ack", "reject", "requeue"] * 2,
    *["get", "cancel", "recover", "open_channel", "close_channel", "cut_link", "purge"],
)


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), min_size=60, max_size=300))
def test_messages_are_where_they_should_be(steps: list[tuple[str, int]]) -> None:
    model = Model()
    for step, which in steps:
        getattr(model, step)(which)
        model.check()
    model.broker.clear()
