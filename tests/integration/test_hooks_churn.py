"""Channels over kombu's hooks come and go while messages flow: each message is handled exactly once."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

import gevent
import pytest

from greenconn.exceptions import NotFound
from tests.integration.contract import SOON, Side, Store, hosted_side, polled_side

QUEUES: Final = ("a", "b", "c")


class Worker:
    """Opens channels, and on each consumes, answers this or that, and leaves the rest to its end.

    Arguments:
        side: whose link is used.
        handled: what all workers have handled, by number.
        wanted: how many there are to handle.
    """

    def __init__(self, side: Side, link: Any, handled: list[int], wanted: int, seed: str) -> None:
        self._side = side
        self._link = link
        self._handled = handled
        self._wanted = wanted
        self._random = Random(seed)

    def run(self) -> None:
        """Work until all is handled."""
        while len(self._handled) < self._wanted:
            self._work(self._side.channel(self._link))

    def _work(self, channel: Any) -> None:
        random = self._random
        channel.basic_qos(0, random.choice([0, 1, 3]), False)
        if random.random() < 0.3:
            channel.basic_qos(0, random.choice([1, 4]), True)
        sink = Store()
        tags = [channel.basic_consume(queue, sink=sink) for queue in random.sample(QUEUES, 2)]
        for _ in range(random.randrange(1, 40)):
            gevent.sleep(random.choice([0, 0, 0.001]))
            self._answer(sink)
        if random.random() < 0.5:
            channel.basic_cancel(tags[0])
        if random.random() < 0.2:
            with pytest.raises(NotFound):  # which closes one of our channels, not one of kombu's
                channel.queue_declare("absent", passive=True)
        channel.close()

    def _answer(self, sink: Store) -> None:
        while sink:
            message, chance = sink.take(), self._random.random()
            if chance < 0.7:
                message.ack()
                self._handled.append(int(message.body))
            elif chance < 0.85:
                message.requeue()
            else:
                return


@pytest.mark.parametrize("make_side", [polled_side, hosted_side], ids=["polled", "hosted"])
def test_each_message_is_handled_once(make_side: Callable[[str], Side], long: bool) -> None:
    count, workers = (3000, 12) if long else (150, 4)
    side = make_side("churn")
    link = side.link()
    channel = side.channel(link)
    for queue in QUEUES:
        channel.queue_declare(queue)
    handled: list[int] = []
    made = [Worker(side, link, handled, count, f"churn {each}") for each in range(workers)]
    running = [gevent.spawn(each.run) for each in made]
    try:
        for number in range(count):
            side.send(channel, str(number), "", QUEUES[number % 3])
            if number % 7 == 0:
                gevent.sleep(0)
        gevent.joinall(running, timeout=SOON, raise_error=True)
    finally:
        gevent.killall(running)
    assert sorted(handled) == list(range(count))
    link.close()
