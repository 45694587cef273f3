"""Handlers that are called once for each message id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Message, Queue
from greenconn.contrib.idempotency import Claim, MemoryIds, handled_once
from greenconn.testing import MemoryBroker
from tests.fix_wires import until

SOON = 60.0
MAIL = Queue("mail")


def settled(consumer: greenconn.ConsumerGreenlet, count: int) -> None:
    """Wait until *count* messages were acked."""
    until(lambda: consumer.stats()["handled"] == count, SOON)


def counting(ids: MemoryIds, **options: Any) -> tuple[Callable[[Any, Message], None], list[Any]]:
    """Return a handler that is called once for each id, and the bodies that it was called with."""
    calls: list[Any] = []

    @handled_once(ids, **options)
    def send(body: Any, message: Message) -> None:
        calls.append(body)

    return send, calls


def test_a_second_copy_is_acked_and_not_handled(broker: MemoryBroker) -> None:
    send, handled = counting(MemoryIds())
    consumer = greenconn.spawn_consumer(MAIL, send)
    for number in (1, 2, 1, 3, 2):
        greenconn.publish(MAIL, number, message_id=f"m{number}")
    greenconn.publish(MAIL, 4)
    greenconn.publish(MAIL, 4)  # without an id
    settled(consumer, 7)
    assert handled == [1, 2, 3, 4, 4]
    assert broker.count("mail") == 0


def test_handlers_of_one_store_do_not_know_each_other(broker: MemoryBroker) -> None:
    ids = MemoryIds()
    handled: Counter[str] = Counter()

    @handled_once(ids)
    def one(body: Any, message: Message) -> None:
        handled["one"] += 1

    @handled_once(ids, name="other")
    def two(body: Any, message: Message) -> None:
        handled["two"] += 1

    consumers = [greenconn.spawn_consumer("a", one), greenconn.spawn_consumer("b", two)]
    for queue in "aabb":
        greenconn.publish(queue, 1, message_id="m1")
    for consumer in consumers:
        settled(consumer, 2)
    assert handled == {"one": 1, "two": 1}


def test_a_handler_that_failed_is_called_again(broker: MemoryBroker) -> None:
    calls: list[Any] = []

    @handled_once(MemoryIds())
    def send(body: Any, message: Message) -> None:
        calls.append(body)
        if len(calls) < 3:
            raise ValueError("not yet")

    retry = {"tries": 5, "delay": 0.01}
    consumer = greenconn.spawn_consumer(MAIL, send, retry=retry)
    greenconn.publish(MAIL, 1, message_id="m1")
    settled(consumer, 1)
    greenconn.publish(MAIL, 1, message_id="m1")
    settled(consumer, 2)
    assert calls == [1, 1, 1]


def test_a_message_that_was_put_back_is_not_handled(broker: MemoryBroker) -> None:
    calls: list[Any] = []

    @handled_once(MemoryIds())
    def send(body: Any, message: Message) -> None:
        calls.append(body)
        if len(calls) == 1:
            message.requeue()

    consumer = greenconn.spawn_consumer(MAIL, send)
    greenconn.publish(MAIL, 1, message_id="m1")
    settled(consumer, 2)
    assert calls == [1, 1]


def test_a_copy_waits_for_the_handler_of_the_first(broker: MemoryBroker) -> None:
    begun, may_end = Event(), Event()
    calls: list[int] = []

    @handled_once(MemoryIds())
    def send(body: Any, message: Message) -> None:
        calls.append(body)
        begun.set()
        may_end.wait()

    consumer = greenconn.spawn_consumer(MAIL, send, concurrency=3)
    greenconn.publish(MAIL, 1, message_id="m1")
    assert begun.wait(SOON)
    greenconn.publish(MAIL, 1, message_id="m1")
    greenconn.publish(MAIL, 2, message_id="m2")
    until(lambda: calls == [1, 2], SOON)
    assert consumer.stats()["in_flight"] == 3
    may_end.set()
    settled(consumer, 3)
    assert calls == [1, 2]


def test_a_long_handler_keeps_its_claim(broker: MemoryBroker) -> None:
    now = 0.0
    renewed: list[str] = []

    class Ids(MemoryIds):
        def renew(self, id: str, owner: str, lease: float) -> bool:
            renewed.append(id)
            return super().renew(id, owner, lease)

    ids = Ids(clock=lambda: now)
    may_end = Event()

    @handled_once(ids, name="mail", lease=0.03)
    def send(body: Any, message: Message) -> None:
        may_end.wait()

    consumer = greenconn.spawn_consumer(MAIL, send)
    greenconn.publish(MAIL, 1, message_id="m1")
    until(lambda: len(renewed) > 3, SOON)
    assert set(renewed) == {"mail:m1"}
    may_end.set()
    settled(consumer, 1)
    assert ids.claim("mail:m1", "ada", 1) is Claim.HANDLED
    count = len(renewed)
    gevent.sleep(0.05)
    assert len(renewed) <= count + 1


def test_an_interrupted_handler_releases_its_claim(broker: MemoryBroker) -> None:
    ids = MemoryIds()
    begun = Event()

    @handled_once(ids, name="mail")
    def send(body: Any, message: Message) -> None:
        begun.set()
        Event().wait()

    consumer = greenconn.spawn_consumer(MAIL, send)
    greenconn.publish(MAIL, 1, message_id="m1")
    assert begun.wait(SOON)
    consumer.kill()
    assert broker.count("mail") == 1
    assert ids.claim("mail:m1", "ada", 1) is Claim.NEW


def test_a_store_that_fails(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    class Ids(MemoryIds):
        def finish(self, id: str, owner: str, ttl: float) -> None:
            raise OSError("the store is away")

    send, calls = counting(Ids())
    consumer = greenconn.spawn_consumer(MAIL, send)
    greenconn.publish(MAIL, 1, message_id="m1")
    settled(consumer, 1)
    assert calls == [1]
    assert "was handled, but could not be marked: the store is away" in caplog.text


class SlowIds(MemoryIds):
    """A store whose replies to the first call of some methods are on their way for long."""

    def __init__(self, *slow: str) -> None:
        super().__init__()
        self.slow = set(slow)
        self.waits, self.replies = Event(), Event()

    def _reply(self, method: str) -> None:
        if method in self.slow:
            self.slow.discard(method)
            self.waits.set()
            self.replies.wait(SOON)

    def claim(self, id: str, owner: str, lease: float) -> Claim:
        claim = super().claim(id, owner, lease)
        self._reply("claim")
        return claim

    def finish(self, id: str, owner: str, ttl: float) -> None:
        self._reply("finish")
        super().finish(id, owner, ttl)

    def release(self, id: str, owner: str) -> None:
        self._reply("release")
        super().release(id, owner)


def test_a_timeout_while_it_is_marked(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    ids = SlowIds("finish")
    send, calls = counting(ids, name="mail")
    consumer = greenconn.spawn_consumer(MAIL, send, handler_timeout=0.05)
    greenconn.publish(MAIL, 1, message_id="m1")
    settled(consumer, 1)
    assert "'mail:m1' was handled, and is not marked yet" in caplog.text
    assert consumer.stats()["failed"] == 0
    ids.replies.set()
    until(lambda: ids.claim("mail:m1", "ada", 1) is Claim.HANDLED, SOON)
    greenconn.publish(MAIL, 1, message_id="m1")
    settled(consumer, 2)
    assert calls == [1]


def test_a_kill_while_it_is_marked(broker: MemoryBroker) -> None:
    ids = SlowIds("finish")
    send, calls = counting(ids)
    consumer = greenconn.spawn_consumer(MAIL, send)
    greenconn.publish(MAIL, 1, message_id="m1")
    assert ids.waits.wait(SOON)
    consumer.kill()
    assert broker.count("mail") == 1
    consumer = greenconn.spawn_consumer(MAIL, send)
    ids.replies.set()
    settled(consumer, 1)
    assert calls == [1]


def test_a_timeout_while_it_is_claimed(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    ids = SlowIds("claim")
    send, calls = counting(ids, name="mail")
    consumer = greenconn.spawn_consumer(MAIL, send, handler_timeout=0.05)
    greenconn.publish(MAIL, 1, message_id="m1")
    until(lambda: "message 'm1' is put back" in caplog.text, SOON)
    assert not calls
    ids.replies.set()
    until(lambda: calls == [1], SOON)
    assert consumer.stats()["failed"] == consumer.stats()["rejected"] == 0
    assert consumer.stop(SOON)
    assert ids.claim("mail:m1", "ada", 1) is Claim.HANDLED
    assert broker.count("mail") == 0


def test_a_timeout_before_a_copy_has_its_turn(broker: MemoryBroker) -> None:
    ids = MemoryIds()
    assert ids.claim("mail:m1", "ada", 1000) is Claim.NEW
    send, calls = counting(ids, name="mail")
    consumer = greenconn.spawn_consumer(MAIL, send, handler_timeout=0.01)
    greenconn.publish(MAIL, 1, message_id="m1")
    settled(consumer, 3)  # it came three times
    assert not calls
    ids.release("mail:m1", "ada")
    until(lambda: calls == [1], SOON)
    assert consumer.stats()["failed"] == 0


def test_a_kill_while_it_is_claimed(broker: MemoryBroker) -> None:
    ids = SlowIds("claim", "release")

    @handled_once(ids, name="mail")
    def send(body: Any, message: Message) -> None:
        raise AssertionError("never")

    consumer = greenconn.spawn_consumer(MAIL, send)
    greenconn.publish(MAIL, 1, message_id="m1")
    assert ids.waits.wait(SOON)
    consumer.kill()
    assert broker.count("mail") == 1
    assert ids.claim("mail:m1", "ada", 1) is Claim.BUSY
    ids.replies.set()
    until(lambda: ids.claim("mail:m1", "ada", 1) is Claim.NEW, SOON)


def test_a_claim_whose_reply_is_lost(broker: MemoryBroker) -> None:
    class Ids(MemoryIds):
        is_lost = False

        def claim(self, id: str, owner: str, lease: float) -> Claim:
            claim = super().claim(id, owner, lease)
            if not self.is_lost:
                self.is_lost = True
                raise OSError("connection lost")
            return claim

    ids = Ids()
    send, calls = counting(ids, name="mail")
    consumer = greenconn.spawn_consumer(MAIL, send, retry={"tries": 2, "delay": 0.01})
    greenconn.publish(MAIL, 1, message_id="m1")
    settled(consumer, 1)
    assert calls == [1]


def test_a_timeout_without_acks(broker: MemoryBroker) -> None:
    ids = SlowIds("claim")

    @handled_once(ids)
    def send(body: Any, message: Message) -> None:
        raise AssertionError("never")

    consumer = greenconn.spawn_consumer(MAIL, send, handler_timeout=0.05, no_ack=True)
    greenconn.publish(MAIL, 1, message_id="m1")
    until(lambda: consumer.stats()["failed"] == 1, SOON)
    ids.replies.set()


def test_batches_are_refused() -> None:
    @handled_once(MemoryIds())
    def send(bodies: Any, messages: Any) -> None:
        raise AssertionError("never")

    with pytest.raises(TypeError, match="handled_once must not be used with batch_size"):
        send([], [])


@pytest.mark.parametrize("option", ["ttl", "lease"])
def test_wrong_options(option: str) -> None:
    given: Any = {option: 0}
    with pytest.raises(ValueError, match=f"handled_once.{option} must be a number of seconds"):
        handled_once(MemoryIds(), **given)
    with pytest.raises(ValueError, match="most must be a positive integer, got 0"):
        MemoryIds(0)


def test_memory_keeps_so_many() -> None:
    ids = MemoryIds(3)
    for number in range(5):
        ids.finish(f"m{number}", "ada", 1000)
    claims = [ids.claim(f"m{number}", "ada", 1) for number in range(5)]
    assert claims == [Claim.NEW] * 2 + [Claim.HANDLED] * 3
