"""One call, run again and again, each time interrupted at another moment in another way."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

import gevent

from greenconn.broker.publishing import StoredResult
from greenconn.green.slot import Slot
from greenconn.transport.amqp.calls import Call as AmqpCall
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.message import Delivery
from greenconn.transport.amqp.publishing import PendingConfirm
from greenconn.transport.base import Link
from greenconn.transport.memory import Channel as MemoryChannel
from greenconn.transport.redis import Channel as RedisChannel
from greenconn.transport.redis.envelope import Delivery as RedisDelivery
from tests.fix_interrupts import INTERRUPTIONS, Run
from tests.quality.faults.interruptions.scene import Call, Scene
from tests.quality.faults.interruptions.targets import Target

#: How many switches a call may make before it is considered endless.
MANY = 500
#: Turns of the hub between a switch and the interruption; where answers come after the same turns each
#: time, each is tried; else more and more of them.
EACH = range(60)
FURTHER = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
#: What must not pile up.
KINDS = (
    *(Slot, AmqpCall, PendingConfirm, StoredResult, Link, gevent.Timeout),
    *(Delivery, RedisDelivery, Channel, MemoryChannel, RedisChannel),
)
#: As many as are there while everything works, but not one for each run.
ALLOWED = 12


@dataclass
class Tally:
    """What was done to one call in one target."""

    group: str
    call: str
    target: str
    #: Switch points that the call has.
    points: int = 0
    #: ... each counted once for each turn of the hub, and for each way to interrupt it.
    moments: int = 0
    injections: int = 0
    runs: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


class Sweep:
    """All runs of a call.

    Arguments:
        call: what is run.
        target: where.
        long: in each way, at each turn of the hub while it waits; else once at each switch, in one of
            the ways.
    """

    def __init__(self, call: Call, target: Target, long: bool) -> None:
        self.call = call
        self.target = target
        self.tally = Tally(call.group, call.name, target.name)
        self._is_long = long
        self._before: Counter[str] | None = None

    def run(self) -> Tally:
        """Do it.  May switch.

        Raises:
            AssertionError: something was not whole; it names the moment.
        """
        began_at = monotonic()
        scene = Scene(self.target)
        moments = self.call.make(scene)
        try:
            self._function = next(moments)
            self._send = moments.send
            self._once(0, INTERRUPTIONS[0], 0)  # the first one may have more to do
            for ways in self._ways():
                self._each_switch(ways)
            moments.close()
            del self._function, self._send, moments  # and what they hold
            scene.close()
            self.target.check()
            if self._is_long:
                self._nothing_piled_up()
        except BaseException:
            scene.abandon()
            raise
        self.tally.seconds = monotonic() - began_at
        return self.tally

    def _ways(self) -> Iterator[tuple[Callable[[], BaseException], ...]]:
        if self._is_long:
            yield from ((make,) for make in INTERRUPTIONS)
        else:
            yield INTERRUPTIONS

    def _each_switch(self, ways: tuple[Callable[[], BaseException], ...]) -> None:
        for number in range(1, MANY):
            is_over = False
            for turn, delay in enumerate(self._delays()):
                run = self._once(number, ways[(number + turn) % len(ways)], delay)
                if run.was_interrupted:
                    self.tally.moments += 1
                    self.tally.points = max(self.tally.points, number)
                    continue
                is_over = run.switches < number
                break
            if is_over:
                return
        raise AssertionError(f"{self.call} makes more than {MANY} switches")

    def _delays(self) -> Iterator[int]:
        if not self._is_long:
            yield 0
        elif self.target.is_scripted:
            yield from EACH
        else:
            yield from FURTHER

    def _once(self, number: int, make: Callable[[], BaseException], delay: int) -> Run:
        run = Run(self._function, number, make(), delay)
        self.tally.runs += 1
        try:
            run.run()
            self._function = self._send(run)
        except Exception as exc:
            where = f"{type(run.error).__name__} at switch {number} + {delay}"
            happened = where if run.was_interrupted else "without an interruption"
            raise AssertionError(f"{self.call} over {self.target}: {happened}: {exc}") from exc
        self.tally.injections += run.was_interrupted
        if self.tally.runs == 3 and self._is_long:
            self._before = _waiting()
        return run

    def _nothing_piled_up(self) -> None:
        assert self._before is not None
        grown = _waiting() - self._before
        much = {name: number for name, number in grown.items() if number >= ALLOWED}
        assert not much, f"{self.call} over {self.target}: {self.tally.runs} runs left {much}"


def _waiting() -> Counter[str]:
    """How many objects there are of each kind of those that somebody who waits leaves somewhere."""
    gevent.sleep(0.01)  # until what is being closed is
    gc.collect()
    found = (type(each) for each in gc.get_objects())
    return Counter(each.__name__ for each in found if issubclass(each, KINDS))
