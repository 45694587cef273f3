"""Acks, requeues and rejects: kept until the turn of the hub ends, then sent to the broker together.

A message is held from its claim until it is settled.  Nothing waits for the reply to an ack: a callback
runs when the broker has it.  The parts that are the same for all brokers (settlements, leases,
dead letters, the hand-over to the next life) know a broker as a :class:`MessageSettler`.

Dead letters are routed here, in a greenlet, so that a reject never waits and is not interrupted
half-way.

What the broker refuses without giving the messages back (Redis cannot write to its disk, a right was
taken away) is sent again whenever the leases are renewed.

A store whose calls block is called by a greenlet of :class:`StoreSettlements`, behind all that can run
when the first ack or reject of a turn comes, so that those of the other greenlets go with it.

Dead letters: messages that were rejected, too old, too many, or delivered too often.

A queue's ``x-dead-letter-exchange`` and ``x-dead-letter-routing-key`` say where they go, else the
transport option ``dead_letter_queue``; without either they are dropped.  Headers are RabbitMQ's.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import to_builtins

from greenconn.broker.envelope import Envelope
from greenconn.broker.port import (
    Claimed,
    Done,
    Entry,
    HeldMessage,
    Settlement,
    SettleRequest,
)
from greenconn.broker.queues import is_name
from greenconn.encoding import safe_repr
from greenconn.exceptions import NotFound, error_text
from greenconn.green.deadline import NEVER, Deadline, marking_thrown
from greenconn.green.slot import Progress
from greenconn.green.supervisor import OnDemand, spawn
from greenconn.identity import uuid
from greenconn.jsoncodec import dumps

if TYPE_CHECKING:
    from greenconn.broker.envelope import Delivery
    from greenconn.broker.link import LeasedLink, StoreLink


logger = logging.getLogger("greenconn.broker")

#: How often a message was delivered before (RabbitMQ's name).
DELIVERY_COUNT: Final = "x-delivery-count"
#: Deaths for one reason that are counted.
_MOST_DEATHS: Final = 2**53


def carbon_copies(headers: Mapping[str, Any], *names: str) -> list[str]:
    """Return the routing keys that the headers *names* (``CC`` and ``BCC``) add to a message's own.

    Raises:
        ValueError: a header is not a list of routing keys.
    """
    found: list[str] = []
    for name in names:
        keys = headers.get(name)
        if keys:
            if not (isinstance(keys, (list, tuple)) and all(map(is_name, keys))):
                raise ValueError(
                    f"header {name} must be a list of routing keys, got {safe_repr(keys)[:100]}"
                )
            found += keys
    return found


def visible_headers(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the headers that a consumer gets: all but ``BCC``."""
    if "BCC" not in headers:
        return headers
    return {name: each for name, each in headers.items() if name != "BCC"}


def with_death(
    headers: Mapping[str, Any], reason: str, source: tuple[str, str, str], expiration: Any
) -> dict[str, Any]:
    """Return *headers* with a death noted in them.

    ``x-death`` lists where a message died and why, the latest first, one entry for each queue and
    reason.  The expiration is kept there only, so that the message does not die of it again.

    Arguments:
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.
        source: the queue where it died, the exchange to which it was published, and its routing key.
        expiration: of the message; None: it has none.
    """
    queue, exchange, routing_key = source
    death: dict[str, Any] = {
        "count": 1,
        "reason": reason,
        "queue": queue,
        "time": datetime.now(timezone.utc),
        "exchange": exchange,
        "routing-keys": [routing_key, *carbon_copies(headers, "CC")],
    }
    if expiration is not None:
        death["original-expiration"] = expiration
    earlier: list[Mapping[str, Any]] = []
    for each in _deaths_in(headers):
        if (each["queue"], each["reason"]) == (queue, reason):
            death = {**each, "count": min(max(each["count"], 0), _MOST_DEATHS) + 1}
        else:
            earlier.append(each)
    found = {**headers, "x-death": [death, *earlier]}
    found.setdefault("x-first-death-reason", reason)
    found.setdefault("x-first-death-queue", queue)
    found.setdefault("x-first-death-exchange", exchange)
    return found


def _deaths_in(headers: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the deaths that *headers* tell of; what cannot be one is no death, as in RabbitMQ."""
    deaths = headers.get("x-death")
    for each in deaths if isinstance(deaths, list) else ():
        if isinstance(each, dict) and "queue" in each and isinstance(each.get("count"), int):
            yield {"reason": None, **each}


def dead_letter(
    envelope: Envelope, queue: str, exchange: str, routing_key: str | None, reason: str
) -> Envelope:
    """Return a message with this death noted in its headers.

    Arguments:
        envelope: as it was stored.
        queue: where it died.
        exchange: where its letter goes.
        routing_key: with which; None keeps the message's own.
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.

    A malformed part is taken for absent; the routing key is the name of the queue then.
    """
    properties, given = dict(envelope["properties"]), envelope.get("headers")
    headers = dict(given) if isinstance(given, Mapping) else {}
    info = properties.get("delivery_info")
    known = info if isinstance(info, Mapping) else {}
    given_to, given_key = known.get("exchange"), known.get("routing_key")
    published_to: str = given_to if is_name(given_to) else ""
    own_key: str = given_key if is_name(given_key) else queue
    key = own_key if routing_key is None else routing_key
    for name in ("CC", "BCC"):
        if name in headers:
            copies = headers[name] if isinstance(headers[name], list) else []
            headers[name] = [each for each in copies if is_name(each)]
    expiration = properties.pop("expiration", None)
    source = (queue, published_to, own_key)
    headers = with_death(headers, reason, source, expiration)
    # Its deliveries are counted anew where it goes now.
    for name in (DELIVERY_COUNT, "redelivered"):
        headers.pop(name, None)
    if routing_key is not None:
        headers.pop("CC", None)
    properties["delivery_info"] = {"exchange": exchange, "routing_key": key}
    return {**envelope, "headers": headers, "properties": properties}


def is_cycle(queue: str, deaths: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a message came back to *queue* without a reject on the way."""
    for death in deaths:
        if death["reason"] == "rejected":
            return False
        if death["queue"] == queue:
            return True
    return False


def dead_letter_entries(link: LeasedLink, message: HeldMessage, reason: str) -> Sequence[Entry]:
    """Return the copies of a message that is given up, for the queues that get it.  May switch.

    Arguments:
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.

    Returns:
        nothing: the message is dropped.
    """
    queue, envelope = message.queue, message.envelope
    policy = link.directory.declaration(queue).policy
    target = policy.dead_letter_target(queue, link.options.dead_letter_queue)
    if target is None:
        return ()
    if envelope is None or not isinstance(envelope.get("properties"), Mapping):
        envelope = link.settler.unread(message)
    letter: Envelope = {}
    key, headers = target.routing_key or queue, {}
    if envelope:
        letter = dead_letter(envelope, queue, *target, reason)
        key, headers = letter["properties"]["delivery_info"]["routing_key"], letter["headers"]
    try:
        queues = link.routing.routes(target.exchange, key, headers)
    except NotFound:
        logger.error(
            "%s: dead letters of queue %r are dropped: exchange %r does not exist",
            link.where,
            queue,
            target.exchange,
            extra={"connection": link.where, "queue": queue},
        )
        return ()
    if letter and reason != "rejected":
        queues = [each for each in queues if not is_cycle(each, headers["x-death"])]
    return link.entries(letter, queues) if queues else ()


class Settlements:
    """The acks, requeues and rejects of one link that the broker has not got yet.

    Arguments:
        link: whose messages they are of.
        settler: of the link.
    """

    #: Lets what waits leave when this turn ends.  Never switches.
    _leave: Callable[[], object]

    def __init__(self, link: LeasedLink, settler: MessageSettler) -> None:
        self._link = link
        self._settler = settler
        #: In order.
        self._waiting: list[SettleRequest] = []
        #: They leave when this turn ends.
        self._is_due = False
        #: What is given up and why, in order; what is being routed stays in front.
        self._to_dead_letter: deque[tuple[HeldMessage, str]] = deque()
        self._postponed: list[tuple[HeldMessage, str]] = []
        self._routing = OnDemand("dead-letters", self._route)
        self._routing_progress = Progress()

    @property
    def is_routing(self) -> bool:
        """Whether dead letters are being routed."""
        return self._routing.greenlet is not None

    def repeat(self) -> None:
        """Send again what was refused.  Never switches."""
        postponed, self._postponed = self._postponed, []
        for message, reason in postponed:
            self.give_up(message, reason)

    # -- see :class:`~greenconn.broker.deliveries.Acknowledger`

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a delivery.  Never switches."""
        self._waiting.append(SettleRequest(delivery, Settlement.ACK))
        if not self._is_due:
            self._schedule()

    def ack_late(self, tag: Any) -> None:
        """Acknowledge a delivery of a link that is lost.  Never switches."""
        self._link.handover.ack(tag)

    def unhandled_late(self, tags: Iterable[Any]) -> None:
        """Note that no handler has begun with deliveries whose link is gone.  Never switches."""
        self._link.handover.note_unhandled(tags)

    def requeue(self, deliveries: Iterable[Delivery], unhandled: Collection[Any] = ()) -> None:
        """Requeue *deliveries*, at the heads of their queues.  Never switches.

        Arguments:
            unhandled: tags of those with which no handler has begun: they do not count as delivered.
        """
        for delivery in deliveries:
            if not delivery.is_held:
                self._settler.return_unheld(delivery)
                continue
            if delivery.delivery_tag in unhandled:
                self.settle(SettleRequest(delivery, Settlement.REQUEUE, is_unhandled=True))
                continue
            limit = self._link.directory.delivery_limit(delivery.queue)
            if limit is not None and delivery.deliveries + 1 >= limit:
                self.give_up(delivery, "delivery_limit")
            else:
                self.settle(SettleRequest(delivery, Settlement.REQUEUE))

    def replace(self, entries: Sequence[Entry], message: HeldMessage) -> None:
        """Store *entries* in the place of a message.  Never switches."""
        self.settle(SettleRequest(message, Settlement.ACK, entries=entries))

    def requeue_unseen(self, message: HeldMessage) -> None:
        """Requeue a message that no handler has seen.  Never switches."""
        self.settle(SettleRequest(message, Settlement.REQUEUE, is_unseen=True))

    def dead_letter(self, deliveries: Iterable[Delivery], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  Never switches."""
        for delivery in deliveries:
            if delivery.is_held:
                self.give_up(delivery, reason)

    def forget(self, delivery: Delivery) -> None:
        """Stop holding a delivery.  Never switches."""
        if delivery.is_held:
            delivery.is_held = False
            self.ack(delivery)

    # -- what leaves

    def settle(self, request: SettleRequest) -> None:
        """Send a request when this turn ends.  Never switches."""
        self._waiting.append(request)
        if not self._is_due:
            self._schedule()

    def take_over(self, requests: Sequence[SettleRequest]) -> None:
        """Send what former lives have left.  Never switches."""
        self._waiting += requests
        if not self._is_due:
            self._schedule()

    def _schedule(self) -> None:
        link = self._link
        if link.lost is not None:
            waiting, self._waiting = self._waiting, []
            link.handover.add(link, waiting)
            return
        self._leave()
        self._is_due = True

    # -- dead letters

    def give_up(self, message: HeldMessage, reason: str) -> None:
        """Make a dead letter of a message, or drop it.  Never switches."""
        link = self._link
        if link.lost is not None:
            # It is requeued, and dead-lettered again by who gets it.
            link.handover.add(link, [SettleRequest(message, Settlement.REQUEUE)])
            return
        self._to_dead_letter.append((message, reason))
        self._routing.start()

    def _route(self) -> None:
        while self._to_dead_letter and self._link.lost is None:
            self._route_next()

    def _route_next(self) -> None:
        message, reason = self._to_dead_letter[0]
        request = self._dead_lettered(message, reason)
        if self._link.lost is not None:
            return  # the next life requeues it
        self._to_dead_letter.popleft()
        if request is None:
            self._postponed.append((message, reason))
        else:
            self.settle(request)
        self._routing_progress.advance(1)

    def _dead_lettered(self, message: HeldMessage, reason: str) -> SettleRequest | None:
        try:
            entries = dead_letter_entries(self._link, message, reason)
        except Exception as exc:
            self._link.failed(exc, "dead-lettering a message")
            return self._settler.postpone(message)
        if entries:
            return SettleRequest(message, Settlement.ACK, entries=entries)
        return SettleRequest(message, Settlement.REJECT)

    def wait_routed(self, deadline: Deadline = NEVER) -> None:
        """Wait until what was given up by now has been routed.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
            RecoverableConnectionError: the link went first.
        """
        if self._to_dead_letter:
            self._routing.start()  # a signal may have come before, in :meth:`give_up`
        self._routing_progress.wait(len(self._to_dead_letter), deadline)

    # -- the end

    def unsettled(self) -> list[SettleRequest]:
        """Return what may not have reached the broker.

        Dead letters under way are requeued: the next life dead-letters them again.
        """
        dying = [
            SettleRequest(message, Settlement.REQUEUE)
            for message, _ in (*self._postponed, *self._to_dead_letter)
        ]
        return [*self._waiting, *dying]

    def stop(self, exc: BaseException) -> None:
        """Send nothing more, as the link is gone.  Never switches."""
        self._is_due = False  # what comes now is the next life's at once
        self._routing_progress.fail(exc)
        self._to_dead_letter.clear()
        self._routing.end()


class PipelinedSettlements(Settlements):
    """Settlements that are sent on before the broker has replied."""

    _settler: PipelinedSettler

    def __init__(self, link: LeasedLink, settler: PipelinedSettler) -> None:
        super().__init__(link, settler)
        self._leave = partial(settler.at_turn_end, self.flush)
        #: What was sent and has no reply yet, by number.
        self._sent: dict[int, Sequence[SettleRequest]] = {}
        self._part = 0
        self._refused: list[SettleRequest] = []

    @property
    def is_answered(self) -> bool:
        """Whether all acks and rejects that were sent have a reply."""
        return not self._sent

    @property
    def refused(self) -> int:
        """The number of acks and rejects that the broker has refused, and that are sent again."""
        return len(self._refused) + len(self._postponed)

    def flush(self) -> None:
        """Send what this turn has brought.  Never switches; called when a turn ends."""
        self._is_due = False
        waiting, self._waiting = self._waiting, []
        try:
            for each in self._settler.parts(waiting):
                self._part = part = self._part + 1
                self._sent[part] = each
                self._settler.settle(each, partial(self._settled, part))
        except BaseException as exc:
            self._settler.interrupted(exc)
            raise

    def before_call(self) -> None:
        """Send acks and requeues before a call to the broker that would count them.  Never switches."""
        if self._waiting:
            self.flush()

    def wait_routed(self, deadline: Deadline = NEVER) -> None:
        """Wait until what was given up by now has left as well.  May switch."""
        super().wait_routed(deadline)
        self.before_call()

    def repeat(self) -> None:
        """Send again what was refused.  Never switches."""
        refused, self._refused = self._refused, []
        self._waiting += [each for each in refused if each.is_ack]
        self.flush()
        for each in refused:
            if not each.is_ack:
                self._waiting.append(each)
                self.flush()  # by itself: it may be another one's fault
        super().repeat()

    def _settled(self, part: int, outcome: Any) -> None:
        if outcome is not None:
            if not isinstance(outcome, Exception):
                self._link.note_late(outcome)
            elif not self._keep_refused(outcome, self._sent[part]):
                return
        del self._sent[part]

    def _keep_refused(self, outcome: Exception, requests: Sequence[SettleRequest]) -> bool:
        """Keep what the broker has refused; False: the link is lost, and the next life sends it."""
        error = self._settler.error(outcome, "settling messages")
        if self._link.lost is not None:
            return False
        self._refused += requests
        spawn(
            "log",
            logger.error,
            "%s: %d acks or rejects are sent again later: %s",
            self._link.where,
            len(requests),
            error_text(error),
            extra={"connection": self._link.where},
        )
        return True

    def unsettled(self) -> list[SettleRequest]:
        """Return what may not have reached the broker."""
        sent = [each for part in self._sent.values() for each in part]
        return [*sent, *self._refused, *super().unsettled()]


class MessageSettler(Protocol):
    """The commands of one link about messages that it holds.

    Nothing here switches but :meth:`reclaim`.

    Attributes:
        lease: seconds that a message is held without renewal; None: as long as the link lives.
        outlives_link: the next life of a connection can settle what this one has claimed.
        renewal_interval: seconds between two renewals; None: there is nothing to renew.
    """

    @property
    def lease(self) -> float | None: ...
    @property
    def renewal_interval(self) -> float | None: ...
    @property
    def outlives_link(self) -> bool: ...

    def return_unheld(self, delivery: Any) -> None:
        """Requeue a delivery that is not held, where that can be done."""

    def unread(self, message: HeldMessage) -> Envelope:
        """Return the envelope of a dead letter that cannot be read; an empty one: it moves as it is."""

    def postpone(self, message: HeldMessage) -> SettleRequest | None:
        """Return what becomes of a message that cannot become a dead letter now.

        None: it stays held, and it is tried again when the leases are renewed.
        """

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew, and say that the link lives, also with none.

        *done* gets the handles whose leases had ended, None, or an Exception.
        """

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return messages that claims without a reply may have taken; only their handles count.

        Asked for when the link ends.
        """

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have claimed.  May switch."""

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception that an outcome stands for; what ends the link ends it."""


class PipelinedSettler(MessageSettler, Protocol):
    """The commands of a link that sends on before the broker has replied.

    *done* is called once, and not when the broker is lost: what was sent then is sent again by the next
    life, which changes nothing where it had arrived.
    """

    def parts(self, requests: Sequence[SettleRequest]) -> Iterable[Sequence[SettleRequest]]:
        """Cut what one turn has brought into what :meth:`settle` takes, in the order for it."""

    def settle(self, requests: Sequence[SettleRequest], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them."""

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run."""

    def interrupted(self, exc: BaseException) -> None:
        """End the link, since the outcome of what was sent is unknown."""


class StoreSettlements(Settlements):
    """Settlements of a store whose calls wait for its replies: all that waits goes with the next call.

    See :class:`MessageSettler`, too.
    """

    _link: StoreLink

    def __init__(self, link: StoreLink) -> None:
        super().__init__(link, self)
        self._store = link.store
        self.outlives_link = link.store.outlives_link
        self._settling = OnDemand("settle", self._settle)
        self._leave = self._settling.start
        self._progress = Progress()
        self._renewals: deque[tuple[Sequence[Any], Done]] = deque()
        self._renewing = OnDemand("renew", self._renew)

    def _settle(self) -> None:
        # It runs behind all that could run when it was started: their acks leave with these.
        try:
            while self._waiting and self._link.lost is None:
                self._settle_batch()
        except BaseException as exc:
            self._link.failed(exc, "settling messages")
            raise
        finally:
            self._is_due = False

    def _settle_batch(self) -> None:
        """Settle as much as one call may have.  May switch."""
        link = self._link
        batch = self._waiting[: self._store.settle_limit]
        try:
            late = self._store.settle(batch)
        except Exception as exc:
            link.failed(exc, "settling messages")
            late = self._settle_alone(batch) if len(batch) > 1 else None
        if link.lost is not None:
            return  # with the reply: the next life settles again what this one held
        # Not before it has arrived: a link that is lost leaves it to the next life.
        del self._waiting[: len(batch)]
        if late:
            link.note_late(late)
        self._progress.advance(len(batch))
        for each in batch:
            for entry in each.entries:
                link.wake(entry.queue)
            if each.settlement is Settlement.REQUEUE:
                link.wake(each.message.queue)

    def _settle_alone(self, batch: Sequence[SettleRequest]) -> int:
        """Settle one by one: one that is refused must not harm the others.  May switch."""
        late = 0
        for each in batch:
            if self._link.lost is not None:
                break
            try:
                late += self._store.settle([each]) or 0
            except Exception as exc:
                self._link.failed(exc, "settling messages")
        return late

    @property
    def is_busy(self) -> bool:
        """Whether the store is being asked."""
        return self._settling.greenlet is not None

    def wait(self, deadline: Deadline = NEVER) -> None:
        """Wait until the store has all acks and rejects up to now.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
            RecoverableConnectionError: the link went first.
        """
        if self._waiting and not self._is_due:
            self._schedule()  # a signal has come before, in :meth:`settle`
        self._progress.wait(len(self._waiting), deadline)

    def stop(self, exc: BaseException) -> None:
        """Send nothing more, as the link is gone.  Never switches."""
        super().stop(exc)
        self._waiting = []  # the next life has them
        self._progress.fail(exc)
        self._renewals.clear()
        self._settling.end()
        self._renewing.end()

    # -- see :class:`MessageSettler`

    @property
    def lease(self) -> float | None:
        """Seconds that a claim lasts; None: as long as the store's connection."""
        return self._store.lease

    @property
    def renewal_interval(self) -> float | None:
        """Seconds between two renewals."""
        lease = self._store.lease
        return None if lease is None else lease / 3

    def return_unheld(self, delivery: Any) -> None:
        """Do nothing: its lease has ended, so that it is back."""

    def unread(self, message: HeldMessage) -> Envelope:
        """Return an envelope with what cannot be read as its body."""
        body = message.raw or dumps(message.envelope).encode()
        encoding = self._store.body_encoding
        return {
            "body": to_builtins(body) if encoding else body,
            "content-type": None,
            "content-encoding": None,
            "headers": {},
            "properties": {"body_encoding": encoding, "delivery_tag": uuid()},
        }

    def postpone(self, message: HeldMessage) -> SettleRequest:
        """Requeue a message after a lease; it is dead-lettered again then."""
        return SettleRequest(message, Settlement.REQUEUE, delay=self._store.lease or 0.0)

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew.  Never switches."""
        self._renewals.append((handles, done))
        self._renewing.start()

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return messages that claims without a reply may have taken.  Never switches."""
        return [Claimed(queue, None, handle) for queue, handle in self._store.unconfirmed_claims()]

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have claimed.  Never switches."""
        requests = [SettleRequest(each, Settlement.REQUEUE) for each in held]
        requests += [
            SettleRequest(each, Settlement.REQUEUE, is_unhandled=True) for each in unhandled
        ]
        requests += [
            SettleRequest(each, Settlement.REQUEUE, is_unseen=True) for each in unconfirmed
        ]
        self.take_over(requests)

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return *outcome*, which is what :meth:`StoreLink.failed` has made of a failure."""
        return outcome

    def finish_renewals(self) -> None:
        """Return when no renewal is under way.  May switch."""
        greenlet = self._renewing.greenlet
        if greenlet is not None:
            with marking_thrown():
                greenlet.join()

    def _renew(self) -> None:
        while self._renewals and self._link.lost is None:
            handles, done = self._renewals.popleft()
            outcome: Sequence[Any] | BaseException
            try:
                outcome = self._store.renew(handles)
            except BaseException as exc:
                outcome = self._link.failed(exc, "renewing leases", is_raised=True)
                if not isinstance(exc, Exception):
                    raise
            done(outcome)
