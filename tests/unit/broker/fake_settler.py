"""A broker that holds messages and answers when a test says so, and a link to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from greenconn.broker.consuming import StoreDelivery
from greenconn.broker.deliveries import Leases
from greenconn.broker.envelope import Envelope
from greenconn.broker.port import Claimed, Done, Entry, SettleRequest
from greenconn.broker.queues import Declaration
from greenconn.broker.settlements import PipelinedSettlements

#: Acks that one call may have.
ACKS = 2

Notified = tuple[Sequence[Any], Done]


class Settler:
    """A broker that answers when the test says so."""

    outlives_link = True
    lease = 30.0
    renewal_interval = 10.0
    unreadable: Envelope = {}

    def __init__(self) -> None:
        self.acks: list[Notified] = []
        self.settled: list[tuple[Sequence[SettleRequest], Done]] = []
        self.renewed: list[Notified] = []
        self.unheld: list[Any] = []
        self.turn_end: list[Callable[[], None]] = []

    def parts(self, requests: Sequence[SettleRequest]) -> Iterable[Sequence[SettleRequest]]:
        acks = [each for each in requests if each.is_ack]
        others = [each for each in requests if not each.is_ack]
        parts = [acks[at : at + ACKS] for at in range(0, len(acks), ACKS)]
        return [*parts, others] if others else parts

    def settle(self, requests: Sequence[SettleRequest], done: Done) -> None:
        if requests[0].is_ack:
            self.acks.append(([each.message.handle for each in requests], done))
        else:
            self.settled.append((requests, done))

    def return_unheld(self, delivery: Any) -> None:
        self.unheld.append(delivery)

    def unread(self, message: Any) -> Envelope:
        return self.unreadable

    def postpone(self, message: Any) -> None:
        pass

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        self.renewed.append((handles, done))

    def unconfirmed_claims(self) -> Iterable[Any]:
        return ()

    def reclaim(
        self, held: Sequence[Any], unhandled: Sequence[Any], unconfirmed: Sequence[Any]
    ) -> None:
        raise NotImplementedError

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        self.turn_end.append(callback)

    def error(self, outcome: Exception, what: str) -> BaseException:
        return outcome

    def interrupted(self, exc: BaseException) -> None:
        raise NotImplementedError

    def end_turn(self) -> None:
        """Let the turn of the hub end."""
        callbacks, self.turn_end = self.turn_end, []
        for callback in callbacks:
            callback()


class Successor:
    """Notes what comes too late."""

    def __init__(self) -> None:
        self.tags: list[Any] = []
        self.requests: list[SettleRequest] = []

    def ack(self, tag: Any) -> None:
        self.tags.append(tag)

    def note_unhandled(self, tags: Iterable[Any]) -> None:
        raise NotImplementedError

    def add(self, link: Any, requests: Sequence[SettleRequest]) -> None:
        self.requests += requests


class Queues:
    """All queues have a dead-letter exchange, and a limit if the test sets one."""

    limit: int | None = None

    def declaration(self, name: str) -> Declaration:
        return Declaration(arguments={"x-dead-letter-exchange": "dlx"})

    def delivery_limit(self, name: str) -> int | None:
        return self.limit


class Options:
    dead_letter_queue: str | None = None


class Link:
    """A link over :class:`Settler`."""

    where = "fake://"
    is_inherited = False

    def __init__(self) -> None:
        self.lost: BaseException | None = None
        self.settler = Settler()
        self.channels: dict[int, Any] = {}
        self.unanswered: list[Held] = []
        self.handover = Successor()
        self.directory = Queues()
        self.routing = self
        self.options = Options()
        self.failures: list[BaseException] = []
        self.route: Callable[[], list[str]] = lambda: ["dead"]
        link: Any = self
        self.settlements = PipelinedSettlements(link, self.settler)
        self.leases = Leases(link)

    def held(self) -> Iterable[Any]:
        return list(self.unanswered)

    def routes(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> list[str]:
        assert exchange == "dlx"
        return self.route()

    def entries(self, envelope: Envelope, queues: Sequence[str]) -> list[Entry]:
        return [Entry(queue, envelope) for queue in queues]

    def note_late(self, count: int) -> None:
        self.leases.note_late(count)

    def failed(self, exc: BaseException, what: str) -> None:
        self.failures.append(exc)


class Held(StoreDelivery):
    """A delivery."""

    __slots__ = ()

    def __init__(self, handle: str, deliveries: int = 0, *, is_readable: bool = True) -> None:
        envelope: Envelope = {
            "body": "",
            "headers": {},
            "properties": {"delivery_info": {"exchange": "", "routing_key": "q"}},
        }
        found = envelope if is_readable else None
        channel: Any = None
        super().__init__(channel, handle, 0, Claimed("q", found, handle, deliveries))
