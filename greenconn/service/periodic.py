"""Periodic calls: a function that one of several processes calls at scheduled times.

Each schedule has its own queue.  The message in the queue, the *token*, contains the time of the next
call.  The process that holds the token is the leader: it waits until the call is due, calls the
function, publishes the token for the next time and acknowledges the previous token.  When the leader's
connection or process ends, the broker redelivers the token to another process, which becomes the leader.
A call that was interrupted is made again by the new leader, and a call that became due in between is
made late instead of being skipped.

The broker chooses the leader.  Brokers that support it use a single active consumer.  On other brokers,
the leader is the process that has declared an exclusive queue, and the consumers of the other processes
are paused.  Each process publishes a token without a time when it starts and every few minutes, in case
the queue is new, or was purged or deleted.  All tokens are delivered to the leader, which keeps the one
that is due first.  It drops one without a time while it holds another, or has published one that is on
its way: of two tokens of one time, the next leader could be sent the second after the call was made.
The leader replaces its own token at the same interval, so that no token exceeds the broker's consumer
timeout.

Before each call, the leader asks the broker whether it still holds the token.  A process that was
suspended for longer than its lease therefore does not call the function after another process has become
the leader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime, timezone, tzinfo
from math import floor, inf, isfinite
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Protocol

from gevent import Timeout, get_hub

from greenconn.broker.link import LeasedLink
from greenconn.checks import Seconds, check_runs, in_seconds, is_number
from greenconn.connection import Connection
from greenconn.defaults import consuming_connection
from greenconn.entity import Queue
from greenconn.exceptions import ResourceLocked, Unroutable, error_text
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.supervisor import spawn
from greenconn.importing import needed
from greenconn.publishing import publish
from greenconn.session.session import begin_channel
from greenconn.worker.consumer import ConsumerGreenlet
from greenconn.worker.lifecycle import ConsumerState, TargetState
from greenconn.worker.options import ConsumerOptions

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.session.session import Session

logger = logging.getLogger("greenconn.periodic")

#: Seconds between two looks at the clock, which may have been set.
LOOK: Final = 10.0
#: Seconds between two attempts to become the leader.
ELECTION_INTERVAL: Final = 1.0
#: Seconds after which a token is published anew; the consumer timeout of RabbitMQ is 30 minutes.
RENEWAL_INTERVAL: Final = 300.0
#: Seconds that the broker may take for a token, or for the question whether one is still held.
TIMEOUT: Final = 30.0
#: A call that is later than this is logged, and calls left out are counted up to here.
LATE: Final = 1.0
MOST_COUNTED: Final = 1000
#: Seconds by which the clock may be set back before times of cron that have passed count again, as in
#: Debian's cron.
SET_BACK: Final = 3 * 3600.0
#: Tokens that a leader may be sent at once: its own, and those that it drops.
PREFETCH: Final = 10
#: Transports on which a queue that is exclusive to one connection keeps those of other processes out.
_LOCKING: Final = frozenset({"redis", "mongodb", "couchdb", "beanstalk"})
_AT_WORK: Final = frozenset(
    {ConsumerState.STARTING, ConsumerState.RUNNING, ConsumerState.RECOVERING}
)


class Schedule(Protocol):
    """A schedule: the times of calls, in seconds since 1970 (UTC)."""

    def following(self, after: float) -> float:
        """Return the first time after *after*."""

    def corrected(self, due: float, now: float) -> float:
        """Return the time of a call that was due at *due*, after the clock was set to *now*."""


class Every:
    """A schedule with a fixed period, counted from 1970, so that all processes share the same times.

    Arguments:
        seconds: the period in seconds, or a timedelta; above 0.

    Raises:
        TypeError: *seconds* is not a number.
        ValueError: *seconds* is not finite or not above 0.
    """

    def __init__(self, seconds: Seconds) -> None:
        seconds = in_seconds(seconds)
        if not is_number(seconds):
            raise TypeError(f"seconds must be a number: @app.every(60), got {seconds!r}")
        if not (isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds must be above 0, got {seconds!r}")
        self._seconds = float(seconds)

    def __repr__(self) -> str:
        return f"every {self._seconds:g} s"

    def following(self, after: float) -> float:
        """Return the first time after *after*."""
        count = floor(after / self._seconds) + 1
        if count * self._seconds <= after:  # as the quotient was rounded
            count += 1
        return count * self._seconds

    def corrected(self, due: float, now: float) -> float:
        """Return *due*, limited to the next time after *now*, in case the clock was set back."""
        # A step of less than a second, as NTP makes, repeats no call.
        return due if self.following(now + LATE) >= due else self.following(now)


class Cron:
    """A schedule defined by a cron expression.

    Arguments:
        expression: five fields: minute, hour, day of month, month and day of week.  With six fields, the
            first field is the second.
        tz: the time zone of the fields.  None is UTC.

    Raises:
        MissingExtra: the package ``cronsim`` is not installed.
        TypeError: *expression* is not text, or *tz* is not a ``tzinfo``, or one of pytz.
        ValueError: *expression* is not a cron expression, or matches no time in the next 50 years.
    """

    def __init__(self, expression: str, tz: tzinfo | None = None) -> None:
        self._cronsim: Any = needed("cronsim", "cronsim", "cron")
        if not isinstance(expression, str):
            raise TypeError(
                f"expression must be text: @app.cron('*/5 * * * *'), got {expression!r}"
            )
        # An object of pytz keeps the offset of one moment, also beyond the next change of the clock.
        is_of_pytz = tz and hasattr(tz, "localize") and tz.utcoffset(None) is None
        if is_of_pytz or not (tz is None or isinstance(tz, tzinfo)):
            raise TypeError(
                f"tz must be a tzinfo such as zoneinfo.ZoneInfo('Europe/Paris'), got {tz!r}"
            )
        self._expression = expression
        self._tz = tz or timezone.utc
        try:
            self.following(time())
        except self._cronsim.CronSimError as exc:
            raise ValueError(
                f"expression must have five fields such as '*/5 * * * *' ({exc}), got {expression!r}"
            ) from exc

    def __repr__(self) -> str:
        return f"cron {self._expression!r} {self._tz}"

    def following(self, after: float) -> float:
        """Return the first time after *after*."""
        begin = datetime.fromtimestamp(after, self._tz)
        found: datetime
        for found in self._cronsim.CronSim(self._expression, begin):
            # In an hour that the end of summer time repeats, the first ones are those that have passed.
            if found.timestamp() > after:
                return found.timestamp()
        raise ValueError(f"expression {self._expression!r} fits no time of the next 50 years")

    def corrected(self, due: float, now: float) -> float:
        """Return *due*, or the next time after *now* if the clock was set back by hours.

        A time that has passed is not repeated when the clock is set back by up to :data:`SET_BACK`.
        """
        # Of a clock that was not set back, no time is left between it and the time that is due.
        return due if self.following(now + SET_BACK) >= due else self.following(now)


class Clock(Protocol):
    """A clock that determines when scheduled calls are due."""

    def now(self) -> float:
        """Return the time in seconds."""

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* in the hub after *delay* seconds; return a function that cancels it."""


class WallClock:
    """The system clock, with timers of the current hub."""

    def now(self) -> float:
        """Return the seconds since 1970."""
        return time()

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* in the hub; it must not switch."""
        timer: Any = get_hub().loop.timer(delay)
        timer.start(function, update=True)
        close: Callable[[], Any] = timer.close
        return close


def periodic_queue(name: str, connection: Connection) -> Queue:
    """Return the queue for the token of a schedule.

    Arguments:
        name: the name of the schedule.
        connection: the connection whose transport determines the queue's arguments.

    Raises:
        ValueError: the transport cannot determine which process is the leader.
    """
    cls = connection.get_transport_cls()
    arguments: dict[str, Any] = {}
    if cls.driver_type == "amqp":
        arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    elif _has_single_active(cls):
        arguments = {"x-single-active-consumer": True}
    elif cls.driver_type not in _LOCKING:
        raise ValueError(
            f"transport {cls.driver_type!r} cannot say which process makes the periodic call {name!r}: "
            f"use RabbitMQ, Redis, SQLite, MongoDB, CouchDB or beanstalk"
        )
    return Queue(f"greenconn.periodic.{name}", queue_arguments=arguments)


def _has_single_active(cls: Any) -> bool:
    supported = getattr(cls.Channel, "supported_arguments", None)
    return supported is not None and "x-single-active-consumer" in supported.queue


class _Lock:
    """A lock that one process holds: an exclusive queue that it has declared.

    Arguments:
        session: the session that declares the queue.  The lock is released when its connection is lost.
        name: the name of the queue.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name
        self._channel: Channel | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock, without asking the broker."""
        return self._channel is not None and bool(self._channel.is_open)

    def acquire(self) -> bool:
        """Try to acquire the lock, and return whether this process holds it.  May switch.

        Raises:
            Exception: the error of the broker or of the connection.
        """
        if self.is_held:
            return True
        session = self._session
        channel = begin_channel(session.broker.transport, session.link(Deadline(TIMEOUT)))
        try:
            if self._declare(channel):
                self._channel = channel
        finally:
            if self._channel is not channel and channel.is_open:
                channel.close()
        return self.is_held

    def _declare(self, channel: Channel) -> bool:
        try:
            channel.queue_declare(
                queue=self._name, durable=False, exclusive=True, auto_delete=False
            )
        except ResourceLocked:
            return False
        return True

    def confirm(self) -> bool:
        """Ask the broker whether this process still holds the lock.  May switch.

        Raises:
            Exception: the error of the broker or of the connection.
        """
        channel = self._channel
        if channel is None or not channel.is_open:
            return False
        link: object = channel.connection
        if isinstance(link, LeasedLink):
            link.directory.forget(
                self._name
            )  # the record may be older than a suspension of this process
        return self._declare(channel)

    def release(self) -> None:
        """Release the lock.  May switch."""
        channel, self._channel = self._channel, None
        if channel is not None and channel.is_open:
            with suppress(Exception):  # a connection that was closed has released the lock, too
                channel.queue_delete(self._name)
                channel.close()


class _Token:
    """A token that this process holds.

    Attributes:
        due: the time at which the call is due, in seconds since 1970.
        is_calling: whether the function is running.
        is_replaced: whether a token that was published later has replaced this one.
        held_since: the time at which it was received, on the monotonic clock.
    """

    def __init__(self, due: float) -> None:
        self.due = due
        self.is_calling = self.is_replaced = False
        self.held_since = monotonic()


class _TokenConsumer(ConsumerGreenlet):
    """The consumer of the tokens of one schedule, most of which only wait for their time."""

    __slots__ = ("calls",)

    def __init__(self, options: ConsumerOptions, calls: PeriodicCalls) -> None:
        super().__init__(options, calls.connection)
        self.calls = calls

    def unsettled(self) -> int:
        return self.calls.unsettled()


class PeriodicCalls:
    """The periodic calls of one schedule that this process makes while it is the leader.

    Arguments:
        name: the name of the schedule, the same in all processes.
        function: the function to call, without arguments.
        schedule: the times of the calls.
        connection: the connection of the consumer.  Tokens are published on another connection.
        clock: the clock that determines when a call is due.
        around: a function that returns a context manager for each call, given the token's message.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[], Any],
        schedule: Schedule,
        connection: Connection,
        clock: Clock,
        around: Callable[[Message], AbstractContextManager[Any]],
    ) -> None:
        self._name = name
        self._function = function
        self._schedule = schedule
        self.connection = connection
        self._session = connection.session
        self._clock = clock
        #: A clock of a test is not set meanwhile.
        self._look = LOOK if isinstance(clock, WallClock) else inf
        self._around = around
        self._queue = periodic_queue(name, connection)
        is_elected = not self._queue.queue_arguments
        self._lock = _Lock(self._session, f"{self._queue.name}.leader") if is_elected else None
        #: The token that counts, of those that this process holds.
        self._token: _Token | None = None
        #: The last time whose call was made here.
        self._last = 0.0
        #: When a token was last known to exist, on the monotonic clock; None: there may be none.
        self._published_at: float | None = None
        #: Until when a token with a time is on its way from here, on the monotonic clock.
        self._expected_until = -inf
        self._consumer: ConsumerGreenlet | None = None

    def start(self) -> ConsumerGreenlet:
        """Start the consumer of the token and return immediately."""
        options = ConsumerOptions(
            queues=(self._queue,),
            handler=self._handle,
            concurrency=2,
            prefetch_count=PREFETCH,
            on_error="requeue",
            name=self._name,
        )
        consumer = self._consumer = _TokenConsumer(options, self)
        consumer.start()
        if self._lock is not None:
            consumer.lifecycle.request(TargetState.PAUSED)
        companion = spawn("periodic", self._accompany, consumer)
        consumer.rawlink(lambda ended: companion.kill(block=False))
        return consumer

    @property
    def name(self) -> str:
        """The name of the schedule."""
        return self._name

    @property
    def last(self) -> float | None:
        """The time whose call this process made last, in seconds since 1970; None: of none."""
        return self._last or None

    @property
    def is_leader(self) -> bool:
        """Whether this process holds the token."""
        return self._token is not None

    @property
    def is_calling(self) -> bool:
        """Whether the function runs now."""
        return self._token is not None and self._token.is_calling

    def unsettled(self) -> int:
        """Return the number of calls that are due or running; 1 if the time of the next is unknown."""
        token = self._token
        return int(token is None or token.is_calling or token.due <= self._clock.now())

    # -- beside the consumer

    def _accompany(self, consumer: ConsumerGreenlet) -> None:
        """Publish tokens until the consumer ends, and elect a leader if the broker does not."""
        try:
            while not consumer.ready():
                at = self._published_at
                is_due = at is None or monotonic() - at > RENEWAL_INTERVAL
                if is_due and (self._token is not None or self._publish(None)):
                    self._published_at = monotonic()
                pause = LOOK if self._published_at is not None else ELECTION_INTERVAL
                if self._lock is not None:
                    self._stand_for_election(consumer, self._lock)
                    pause = ELECTION_INTERVAL
                if not consumer.ready():
                    self._wait(pause, WallClock())
        finally:
            if self._lock is not None:
                self._lock.release()

    def _stand_for_election(self, consumer: ConsumerGreenlet, lock: _Lock) -> None:
        try:
            is_leader = lock.acquire()
        except Exception as exc:
            logger.debug("schedule %r: no election: %s", self._name, error_text(exc))
            is_leader = False
        if is_leader:
            consumer.lifecycle.resume()
        else:
            consumer.lifecycle.request(TargetState.PAUSED)

    def _publish(self, due: float | None) -> bool:
        """Publish a token, and return whether the broker has it.  May switch.

        Arguments:
            due: the time at which the call is due; None lets the leader choose it.
        """
        # From the beginning, as it may arrive before the broker's confirm.
        self._expected_until = -inf if due is None else monotonic() + TIMEOUT
        is_published = False
        try:
            is_published = self._send({"due": due, "schedule": repr(self._schedule)})
        finally:
            if not is_published:  # also where this greenlet was killed
                self._expected_until = -inf
        return is_published

    def _send(self, body: dict[str, Any]) -> bool:
        for _ in range(2):
            try:
                publish(self._queue, body, connection=self.connection, timeout=TIMEOUT)
            except Unroutable:
                continue  # the queue was deleted, and is declared again
            except Exception as exc:
                logger.debug("schedule %r: no token was published: %s", self._name, error_text(exc))
                return False
            return True
        return False

    def _wait(self, seconds: float, clock: Clock) -> None:
        """Wait for a change of the consumer's state, for at most *seconds*.  May switch."""
        assert self._consumer is not None
        changed = self._consumer.lifecycle.changed
        stop = clock.call_later(seconds, changed.wake_all)
        try:
            changed.wait(NEVER)
        finally:
            stop()

    # -- as the handler of the token

    def _handle(self, body: Any, message: Message) -> None:
        """Hold a token until its call is made or another token replaces it.  May switch."""
        due = self._due_of(body)
        current = self._token
        if due is not None:
            self._expected_until = -inf
        elif monotonic() < self._expected_until:
            return  # a second token of that time could outlive the call
        if current is not None:
            if current.is_calling or due is None or due > current.due:
                return
            current.is_replaced = True
            self._wake()
        token = self._token = _Token(self._following() if due is None else due)
        if due is None:
            # To be replaced at once by one with the time: it tells the next leader of a call that was
            # interrupted.
            token.held_since = -inf
        try:
            if self._await_turn(token, message):
                self._call(token, message)
        except BaseException:
            if not message.channel.is_open:
                # The broker may have delivered it again, to be dropped while this call was running.
                self._published_at = None
                self._wake()
            raise
        finally:
            if self._token is token:
                self._token = None

    def _due_of(self, body: Any) -> float | None:
        """Return the time in a token, or None if it has passed, is missing or is another schedule's."""
        if not isinstance(body, dict) or body.get("schedule") != repr(self._schedule):
            return None
        due: Any = body.get("due")
        return float(due) if is_number(due) and due > self._last else None

    def _following(self) -> float:
        """Return the time of the next call."""
        now = self._clock.now()
        following = self._schedule.following(max(now, self._last))
        due = self._schedule.corrected(following, now)
        if due < following:
            self._last = now  # the clock was set back
        return due

    def _wake(self) -> None:
        assert self._consumer is not None
        self._consumer.lifecycle.changed.wake_all()

    def _may_go_on(self, message: Message) -> bool:
        assert self._consumer is not None
        return self._consumer.state in _AT_WORK and bool(message.channel.is_open)

    def _await_turn(self, token: _Token, message: Message) -> bool:
        """Wait until the call is due, and return whether this process is to make it.  May switch.

        A token that has been replaced is dropped.  A token that this process may not keep is requeued.
        """
        while True:
            if token.is_replaced:
                return False
            if not self._may_go_on(message):
                if message.channel.is_open:  # else the broker has requeued it
                    message.requeue()
                return False
            now = self._clock.now()
            token.due = self._schedule.corrected(token.due, now)
            if monotonic() - token.held_since > RENEWAL_INTERVAL:
                token.held_since = monotonic()
                if self._publish(token.due):
                    return False
                continue  # without the broker's word the present token must do
            is_elected = self._lock is None or self._lock.is_held
            if now >= token.due and is_elected:
                if self._is_held(message):
                    return True
                logger.warning(
                    "schedule %r: another process is the leader, as this one was stopped or busy for "
                    "longer than its lease",
                    self._name,
                )
                message.requeue()
                return False
            self._wait(
                min(max(token.due - now, 0.0), self._look) if is_elected else ELECTION_INTERVAL,
                self._clock,
            )

    def _is_held(self, message: Message) -> bool:
        """Ask the broker whether this process still holds the token.  May switch."""
        link = message.channel.connection
        deadline = Deadline(TIMEOUT)
        try:
            if self._lock is not None and not self._lock.confirm():
                return False
            if isinstance(link, LeasedLink) and link.settler.renewal_interval is not None:
                # The lease may have expired while the process was suspended.
                return link.leases.confirm(getattr(message, "handle", None), deadline)
            # The connection holds the token.  While the broker answers on it, the token is not requeued.
            name = self._queue.name
            self._session.utility.run(
                lambda channel: channel.queue_declare(queue=name, passive=True), deadline
            )
        except Exception as exc:
            logger.debug("schedule %r: the broker does not answer: %s", self._name, error_text(exc))
            return False
        return bool(message.channel.is_open)

    def _call(self, token: _Token, message: Message) -> None:
        """Make the call, and publish the token of the next one.  May switch."""
        token.is_calling = True
        late = self._clock.now() - token.due
        if late > LATE:
            logger.info("schedule %r: the call is %.1f s late", self._name, late)
        try:
            with self._around(message):
                self._function()
        except (Exception, Timeout):
            logger.exception("the periodic call %r failed", self._name)
        self._last = token.due
        following = self._following()
        self._log_left_out(token.due, following)
        self._token = None  # tokens that arrive from now on are accepted
        if not self._publish(following):
            message.requeue()

    def _log_left_out(self, last: float, following: float) -> None:
        count, due = 0, self._schedule.following(last)
        while due < following and count < MOST_COUNTED:
            count, due = count + 1, self._schedule.following(due)
        if count:
            logger.warning(
                "schedule %r: calls that were left out, as the one before took longer or came late: %d",
                self._name,
                count,
            )


def spawn_periodic(
    name: str,
    function: Callable[[], Any],
    *,
    schedule: Schedule,
    connection: Connection | str | None = None,
    clock: Clock | None = None,
    around: Callable[[Message], AbstractContextManager[Any]] = nullcontext,
) -> ConsumerGreenlet:
    """Call *function* at the times of a schedule, in one of the processes that run it.

    Returns immediately; the calls are made by a consumer in the background.

    Arguments:
        name: the name of the schedule.  It must be the same in all processes, and unique at the broker.
        function: the function to call, without arguments.  Exceptions that it raises are logged.
        schedule: an :class:`Every` or :class:`Cron` object, or another :class:`Schedule`.
        connection: a ``Connection``, a URL, or None for the default one, as in
            :func:`greenconn.spawn_consumer`.
        clock: a replacement clock for tests.  None uses the system clock.
        around: a function that takes the message of a call and returns a context manager, which is
            entered around the call.

    Returns:
        The greenlet of the consumer.

    Raises:
        ValueError: the transport cannot determine which process is the leader.
        WrongHub: the connection belongs to another thread.
    """
    own = consuming_connection(connection)
    return PeriodicCalls(name, function, schedule, own, clock or WallClock(), around).start()


def periodic_calls(consumer: ConsumerGreenlet) -> PeriodicCalls | None:
    """Return the periodic calls that a consumer makes; None: it is another consumer."""
    return consumer.calls if isinstance(consumer, _TokenConsumer) else None


def call_now(name: str, schedule: Schedule, connection: Connection) -> None:
    """Have the leader of a schedule make a call at once, besides those of the schedule.  May switch.

    A call that runs already is not repeated.

    Arguments:
        name: the name of the schedule.
        schedule: the schedule, as the leader has it.
        connection: publishes the token.

    Raises:
        OperationalError: the token cannot be published.
    """
    body = {"due": time(), "schedule": repr(schedule)}
    publish(periodic_queue(name, connection), body, connection=connection, timeout=TIMEOUT)


def check_periodic(function: object) -> None:
    """Check that *function* can be called periodically.

    Raises:
        TypeError, ValueError: *function* is not callable, or cannot be called periodically.
    """
    if not callable(function):
        raise TypeError(f"function must be a callable, got {function!r}")
    check_runs("function", function)
