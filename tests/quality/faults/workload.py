"""The publishers and the consumers of a storm."""

from __future__ import annotations

import random
import traceback
from collections.abc import Sequence
from functools import partial

import gevent
from gevent.event import Event

from tests.quality.faults.client import Client, Mishap, Receiver, Way
from tests.quality.faults.ledger import Ledger, Stream, body_of, key_of
from tests.quality.faults.targets.base import Place, Role

#: Of so many messages a handler fails with one, the first time.
MISHAP_EVERY = 97
#: Of so many streams one goes to the queue that is deleted, and one to those without acks.
ROUND = 10
BATCH = 20
#: Seconds that an end may take: no call of a client takes longer than that.
END_TIMEOUT = 90.0
#: Seconds after which one that goes on is worth a note.
SLOW_END = 12.0


class Interrupted(BaseException):
    """Ends what a publisher does just now, as a kill or a ``gevent.Timeout`` would."""


def place_of(greenlet: gevent.Greenlet[..., None]) -> str:
    """Where a greenlet waits."""
    lines = traceback.format_stack(greenlet.gr_frame, 6) if greenlet.gr_frame else []
    return "hangs at " + " ".join(" ".join(lines).split())


def assigned(places: Sequence[Place], greenlets: int) -> list[Place]:
    """To which queue each of so many publishers publishes."""
    by_role = {role: [place for place in places if place.role is role] for role in Role}
    found: list[Place] = []
    for number in range(greenlets):
        role = {ROUND - 1: Role.DELETED, ROUND - 2: Role.UNACKED}.get(number % ROUND, Role.KEPT)
        choice = by_role[role]
        count = number if role is Role.KEPT else number // ROUND
        if not choice:
            choice, count = by_role[Role.KEPT], number
        found.append(choice[count % len(choice)])
    return found


class Publisher:
    """A greenlet that publishes the messages of one stream, one call after the other, until *over*.

    Arguments:
        way: in which it publishes them.
        pause: mean seconds between two messages.
    """

    def __init__(
        self,
        stream: Stream,
        way: Way,
        ledger: Ledger,
        chance: random.Random,
        pause: float,
        over: Event,
    ) -> None:
        self.stream = stream
        self._pause = pause
        self._over = over
        self._send, self.delay = way
        self._ledger = ledger
        self._chance = chance
        self.is_at_work = self.is_idle = False
        self._publish_early = Event()
        self.greenlet: gevent.Greenlet[..., None] = gevent.spawn(self._run)

    def _run(self) -> None:
        self.is_at_work = True
        while not self._over.is_set():
            count = self._chance.choice((1, 1, 1, self._chance.randint(2, BATCH)))
            pause = self._chance.expovariate(1 / (self._pause * count))
            try:
                self.is_idle = True
                self._publish_early.wait(pause)
                self.is_idle = False
                self._publish_early.clear()
                if not self._over.is_set() and self.publish(count):
                    self._over.wait(0.1)
            except Interrupted:
                pass

    def publish_now(self) -> None:
        """Publish now, and not when it is time."""
        self._publish_early.set()

    def publish(self, count: int) -> int:
        """Publish so many messages; returns how many failed.  May switch."""
        numbers = [self.stream.begin() for _ in range(count)]
        bodies = [body_of(self.stream.number, number, self._chance) for number in numbers]
        try:
            failed = self._send(self.stream.queue, bodies)
        except BaseException as exc:
            for number in numbers:
                self._ledger.failed(self.stream, number, type(exc).__name__)
            if isinstance(exc, Exception):
                return count
            raise
        for position, number in enumerate(numbers):
            if position in failed:
                self._ledger.failed(self.stream, number, type(failed[position]).__name__)
            else:
                self._ledger.published(self.stream, number)
        return len(failed)


class Workload:
    """All publishers and consumers.

    Arguments:
        places: the queues that are consumed from here, and published to.
        greenlets: how many publish.
        rate: messages a second, all together, while nothing is wrong.
    """

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        places: Sequence[Place],
        *,
        greenlets: int,
        rate: float,
        seed: int,
        is_calm: bool,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._places = places
        self._unacked = {place.queue.name for place in places if place.role is Role.UNACKED}
        self._greenlets, self._pause = greenlets, greenlets / rate
        self._chance = random.Random(f"workload {seed}")
        self._is_calm = is_calm
        self._over = Event()
        self._failed_once: set[tuple[int, int]] = set()
        self.publishers: list[Publisher] = []
        self.receivers = [
            client.receiver(number, place, self._handle) for number, place in enumerate(places)
        ]

    def _handle(self, queue: str, body: object, is_redelivered: bool) -> None:
        key = key_of(body)
        if (
            key
            and not self._is_calm
            and queue not in self._unacked
            and key[1] % MISHAP_EVERY == 1
            and key not in self._failed_once
        ):
            self._failed_once.add(key)
            raise Mishap
        if self._chance.random() < 0.02:
            gevent.sleep(self._chance.uniform(0, 0.05))
        self._ledger.handle(queue, body, is_redelivered)

    def begin(self) -> None:
        """Consume, then publish.  May switch."""
        for receiver in self.receivers:
            receiver.begin()
        for number, place in enumerate(assigned(self._places, self._greenlets)):
            ways = self._client.ways(place)
            # Each queue has all of them: the queues go round with the number, too.
            way = ways[(number + number // len(ways)) % len(ways)]
            stream = self._ledger.stream(place.queue.name, place.role is not Role.UNACKED)
            chance = random.Random(self._chance.getrandbits(32))
            self.publishers.append(
                Publisher(stream, way, self._ledger, chance, self._pause, self._over)
            )

    @property
    def queues_in_use(self) -> set[str]:
        """The queues to which somebody publishes."""
        return {publisher.stream.queue for publisher in self.publishers}

    def publish_now(self) -> None:
        """Have somebody publish to each queue now, so that it is seen when that is handled."""
        late_first = sorted(self.publishers, key=lambda each: -each.delay)
        idle = {each.stream.queue: each for each in late_first if each.is_idle}
        for publisher in idle.values():
            publisher.publish_now()

    def interrupt(self, chance: random.Random) -> None:
        """Interrupt some publishers, wherever they are."""
        for publisher in chance.sample(self.publishers, max(len(self.publishers) // 5, 1)):
            if publisher.is_at_work:
                publisher.greenlet.kill(Interrupted, block=False)

    def troubles(self) -> list[str]:
        """What has ended those who should go on."""
        found = [f"consumer: {text}" for each in self.receivers if (text := each.trouble())]
        for publisher in self.publishers:
            if publisher.greenlet.exception is not None:
                found.append(f"publisher: {publisher.greenlet.exception!r}")
        return found

    def stop_publishing(self) -> list[str]:
        """Have the publishers end their calls; returns where those hang that do not.  May switch."""
        self._over.set()
        for publisher in self.publishers:
            publisher.publish_now()
        greenlets = [publisher.greenlet for publisher in self.publishers]
        gevent.joinall(greenlets, timeout=SLOW_END)
        for greenlet in greenlets:
            if not greenlet.ready():
                self._ledger.notes.append(f"all is well for {SLOW_END:g} s: {place_of(greenlet)}")
        gevent.joinall(greenlets, timeout=END_TIMEOUT)
        hung = [place_of(each) for each in greenlets if not each.ready()]
        gevent.killall(greenlets)
        return hung

    def close(self) -> None:
        """End the publishers at once, wherever they are.  Again: does nothing.  May switch."""
        self._over.set()
        gevent.killall([publisher.greenlet for publisher in self.publishers])

    def publish_last(self) -> list[str]:
        """Each stream publishes once more, which must succeed now; returns what did not.  May switch."""
        greenlets = [gevent.spawn(partial(self._publish_last, each)) for each in self.publishers]
        gevent.joinall(greenlets)
        return [text for greenlet in greenlets if (text := greenlet.get()) is not None]

    def _publish_last(self, publisher: Publisher) -> str | None:
        stream = publisher.stream
        try:
            with gevent.Timeout(END_TIMEOUT):
                while publisher.publish(1):
                    gevent.sleep(0.2)
        except gevent.Timeout:
            return f"stream {stream.number} cannot publish to {stream.queue}"
        return None

    def end(self) -> list[str]:
        """End the consumers; returns what went wrong.  May switch."""
        greenlets = [gevent.spawn(_ended, receiver) for receiver in self.receivers]
        gevent.joinall(greenlets)
        return [text for each in greenlets if (text := each.get()) is not None]


def _ended(receiver: Receiver) -> str | None:
    try:
        receiver.end()
    except Exception as exc:
        return f"end of a consumer: {exc!r}"
    return None
