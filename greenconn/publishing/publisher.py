"""The publisher of a connection, which all greenlets that publish over it share.

All publish over one channel with confirms, so a publish costs no channel and waits for its confirm
only. The channel is opened by the first that needs it; a lost one is replaced by the next publish.

A publish returns when the broker has confirmed the message, and is retried until its deadline for
whatever may pass: a lost connection, a broker that is unavailable or blocks.  A message that was sent
may then be published twice; ``maybe_delivered`` of the error tells.

A message that the broker refuses costs the channel, and with it the confirms of all others on it, which
cannot know whose fault it was.  They are sent again one at a time on a channel of their own
(*isolated*), so that the refusal meets its own message only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from greenconn.defaults import declare_by_name
from greenconn.entity import Exchange
from greenconn.entity.existence import (
    ensure_declared,
    forget_existence,
    has_messages,
    is_expected,
    note_deleted,
    wait_for_queue,
)
from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    ConnectionBlocked,
    IrrecoverableConnectionError,
    LimitExceeded,
    NotAllowed,
    NotFound,
    OperationalError,
    PublishNacked,
    PublishRefused,
    PublishTimeout,
    Unroutable,
    error_text,
    is_unavailable,
)
from greenconn.green.deadline import Deadline
from greenconn.green.pool import FairPool
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.single_flight import SingleFlight
from greenconn.green.supervisor import spawn
from greenconn.listeners import LISTENERS
from greenconn.publishing.message import OutgoingMessage, PublishOptions
from greenconn.session.channels import begin_channel
from greenconn.session.session import Session

if TYPE_CHECKING:
    from greenconn.abc import Channel

logger = logging.getLogger("greenconn.publishing")

T = TypeVar("T")

#: After the loss of a connection: without a switch at first, so that messages are sent again in order.
PUBLISHING: Final = RetryPolicy(first=0.05, longest=2.0, jitter=0.0, immediate=1)
#: For a queue whose node is away.
FINDING: Final = RetryPolicy(first=0.05, longest=2.0, jitter=0.0)
#: Seconds for which an empty queue may refuse a message, since it may have no leader.
LEADER_WAIT: Final = 10.0


class Publisher:
    """The publisher of a connection, which all greenlets that publish over it share.

    Arguments:
        session: of the connection that publishes.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._channel: Any = None
        #: Channels that are not used any more, some with outstanding confirms.
        self._retired: list[Any] = []
        self._flight = SingleFlight("publish-channel")
        #: When an empty queue refused a message first, while its caller tries again.
        self._nacked_at: dict[OutgoingMessage, float] = {}
        #: One channel, one holder, in the order of arrival: where each message is sent alone.
        self._isolated: FairPool[Any] = FairPool(
            self._open,
            _close,
            lambda channel: bool(channel.is_open),
            1,
            lambda: f"isolated channel of {session.broker.label}",
        )

    @property
    def label(self) -> str:
        """The broker's URL, password masked."""
        return self._session.broker.label

    @property
    def lasting_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that :meth:`retry` raises when its deadline ended."""
        return (*self._session.broker.connection_errors, TimeoutError, LimitExceeded)

    def publish(self, message: OutgoingMessage, deadline: Deadline) -> None:
        """Publish *message*, again as long as that may help.  May switch.

        Raises:
            OperationalError: see :func:`greenconn.publish`.
        """
        if (observers := LISTENERS.publishing) is not None and message.observation is None:
            message.observe(observers, self.label).run(self.publish, message, deadline)
            return
        failure: Exception | None = None
        try:
            try:
                # Nearly all succeed at once: no function in between, and nothing prepared for more.
                if (channel := self._channel) is None or not channel.is_open:
                    self._connect(deadline, reopen=True)
                self._publish_once(message, deadline)
            except Exception as exc:
                failure = exc
            if failure is not None:
                try:
                    again = partial(self._publish_once, message, deadline)
                    self._try_again(again, deadline, failure)
                finally:
                    self._nacked_at.pop(message, None)
        except _NoLeader as exc:
            raise exc.nack from exc.nack.__cause__
        except ConnectionBlocked as exc:
            if not message.maybe_delivered:
                raise
            raise self.timed_out(message, deadline, exc) from exc
        except NEVER_REPEATED:
            raise
        except self.lasting_errors as exc:
            # Its text says all; our frames would make a page of each error while a broker is away.
            raise self.timed_out(message, deadline, exc) from exc.with_traceback(None)

    def retry(self, function: Callable[[], T], deadline: Deadline) -> T:
        """Return what *function* returns, called again after each loss of the connection.  May switch.

        Raises:
            OperationalError: the broker refused the login, or the connection was closed meanwhile.
            Exception: one of :attr:`lasting_errors`, the last one when the deadline ended; or another
                that *function* raised.
        """
        try:
            # While its channel is open the connection is.
            if (channel := self._channel) is None or not channel.is_open:
                self._connect(deadline, reopen=True)
            return function()
        except Exception as exc:
            failure = exc
        return self._try_again(function, deadline, failure)

    def _try_again(self, function: Callable[[], T], deadline: Deadline, failure: Exception) -> T:
        """Do the rest of :meth:`retry` after a first attempt that failed."""
        for attempt in attempts(PUBLISHING, deadline, self._is_lasting, failure=failure):
            with attempt:
                if (channel := self._channel) is None or not channel.is_open:
                    self._connect(deadline, reopen=False)
                return function()
        raise AssertionError("unreachable")

    def _is_lasting(self, exc: Exception) -> bool:
        """Return whether an error may pass before the deadline."""
        if isinstance(exc, NEVER_REPEATED) or not isinstance(exc, self.lasting_errors):
            return False
        if self._session.is_closed:
            raise OperationalError(
                f"the connection to {self.label} was closed during the call: {exc}"
            ) from exc
        return True

    def timed_out(
        self, message: OutgoingMessage, deadline: Deadline, exc: BaseException
    ) -> PublishTimeout:
        """Return the error of a publish whose deadline ended, because of *exc*."""
        within = "in time" if deadline.timeout is None else f"within {deadline.timeout:g} s"
        fate = "the broker may have it" if message.maybe_delivered else "nothing was sent"
        return PublishTimeout(
            f"{self.label} did not accept a message to {message.options} {within}, {fate}: {exc}",
            maybe_delivered=message.maybe_delivered,
        )

    def ensure_target(self, options: PublishOptions, deadline: Deadline) -> None:
        """See that the queue or exchange exists, once in the life of a connection.  May switch.

        A queue whose node is away is waited for.

        Raises:
            PublishRefused: the broker's refusal is its ``__cause__``.
            Unroutable: a queue known only by its name does not exist, and no consumer declares it.
            TimeoutError: the consumer of this thread that is about to declare it has not, in time; or
                its node is still away.
        """
        if options.key in self._session.life.declared_entities:
            return
        away: NotFound | None = None
        for _ in attempts(FINDING, deadline):
            try:
                self._ensure(options, deadline)
                return
            except NotFound as exc:
                away = exc
            except TimeoutError:
                if away is None:
                    raise
        assert away is not None, "else it had been declared, or failed"
        raise TimeoutError(str(away)) from away

    def _ensure(self, options: PublishOptions, deadline: Deadline) -> None:
        """Do one attempt of :meth:`ensure_target`.

        Raises:
            NotFound: the queue's node is away.
        """
        target, session = options.target, self._session
        try:
            if isinstance(target, str):
                self._ensure_named(options, target, deadline)
            elif target.name:
                ensure_declared(session, target, deadline)
        except NEVER_REPEATED:
            raise
        except session.broker.channel_errors as exc:
            if is_unavailable(exc):
                raise
            raise PublishRefused(f"cannot publish to {options}: {exc}") from exc

    def _ensure_named(self, options: PublishOptions, name: str, deadline: Deadline) -> None:
        session = self._session
        declare = declare_by_name() if options.declare is None else options.declare
        if not (options.mandatory or declare or is_expected(session, name)):
            return  # without mandatory an unroutable message is no error
        try:
            wait_for_queue(session, name, deadline, declare=bool(declare))
        except NotFound as exc:
            if is_unavailable(exc):
                raise
            raise Unroutable(
                f"queue {name!r} does not exist at {self.label}, and publish() by name does not "
                f"declare it: start its consumer first, publish to a Queue with the arguments of "
                f"its consumer, or pass declare=True",
                routing_key=name,
            ) from exc

    def shared_channel(self, deadline: Deadline) -> Any:
        """Return the channel that all share, opened anew if it is not open.  May switch.

        Raises:
            TimeoutError: the deadline ended: nothing more may be sent.
        """
        channel = self._channel
        if channel is None or not channel.is_open:
            channel = self._flight.run("channel", self._open_shared, deadline)
        if deadline.has_ended:
            raise TimeoutError("the timeout has expired")
        return channel

    @staticmethod
    def may_pass(exc: PublishNacked, options: PublishOptions) -> bool:
        """Return whether the broker may take a message later that it has refused.

        Not if it said why; nor where the message may have reached other queues of an exchange.
        """
        return not (exc.has_reason or isinstance(options.target, Exchange))

    def _check_nack(
        self, exc: PublishNacked, message: OutgoingMessage, channel: Channel, deadline: Deadline
    ) -> None:
        """Return if the queue that refused a message is there and holds messages.  May switch.

        It may be full then.  But RabbitMQ also refuses what it cannot give to a queue that it knows: a
        classic one whose node is away, or a quorum queue between two leaders, of which it says that it
        is empty.  An empty queue may also be too small for the message.

        A channel of RabbitMQ 3.10 that never reached a quorum queue asks for the node on which it was
        led when the channel was opened.  While that is away it refuses all messages for the queue, and
        while it starts it also keeps all others waiting.  So the next attempt uses another channel.

        Raises:
            PublishNacked: *exc*: nothing is known of the queue, or it was empty for too long.
            TimeoutError: the queue is not available, and the next attempt waits for it.
        """
        options = message.options
        if not self.may_pass(exc, options) or not self._session.is_open:
            raise exc
        forget_existence(self._session, options.target)
        try:
            self._ensure(options, deadline)
            if has_messages(self._session, options.routing_key, deadline):
                return
        except (NotFound, TimeoutError) as away:
            raise TimeoutError(str(away)) from exc.__cause__
        except Exception as failure:
            logger.debug(
                "checking %s after a nack: %s",
                options,
                error_text(failure),
                extra={"connection": self._session.broker.label, "queue": options.routing_key},
            )
            raise exc from exc.__cause__
        self.retire(channel)
        now = monotonic()
        if now - self._nacked_at.setdefault(message, now) > LEADER_WAIT:
            raise exc from exc.__cause__
        raise _NoLeader(exc)

    def retire(self, channel: Channel) -> None:
        """Publish over another channel from now on.  Never switches.

        It is closed when its publishes are confirmed and a further one is opened.
        """
        if channel is self._channel:
            self._channel = None
            self._retired.append(channel)

    def check_return(self, exc: Unroutable, options: PublishOptions, deadline: Deadline) -> None:
        """Return unless a message reached no queue since the node of its queue is away.  May switch.

        RabbitMQ up to 3.13 does not route to such a queue.

        Raises:
            TimeoutError: the next attempt waits for the queue.
        """
        self.note_failure(exc, options)
        if isinstance(options.target, Exchange) or not self._session.is_open:
            return  # the queue is not known
        try:
            has_messages(self._session, options.routing_key, deadline)
        except NotFound as away:
            if is_unavailable(away):
                raise TimeoutError(str(away)) from exc
        except Exception as failure:
            logger.debug(
                "checking %s after a return: %s",
                options,
                error_text(failure),
                extra={"connection": self._session.broker.label, "queue": options.routing_key},
            )

    def note_failure(self, exc: BaseException, options: PublishOptions) -> None:
        """Take note of why a message was not published."""
        if isinstance(exc, Unroutable):
            # It was there, and is gone: the next message declares it again.
            note_deleted(self._session, options.target)

    def _connect(self, deadline: Deadline, *, reopen: bool) -> None:
        try:
            self._session.link(deadline, reopen=reopen)
        except (AccessRefused, NotAllowed) as exc:
            raise OperationalError(f"{self.label} refused the connection: {exc}") from exc

    def _publish_once(self, message: OutgoingMessage, deadline: Deadline) -> None:
        """Publish *message* on the shared channel, or on one of its own.  May switch."""
        channel: Any = None
        if not message.is_isolated:
            try:
                options = message.options
                if options.key not in self._session.life.declared_entities:
                    self.ensure_target(options, deadline)
                channel, at = self._channel, deadline.at
                if channel is None or not channel.is_open or (at is not None and monotonic() >= at):
                    channel = self.shared_channel(deadline)
                message.begin(channel, deadline).wait(deadline)
                return
            except PublishNacked as exc:
                # If it has a leader again, or room, it is taken now.
                self._check_nack(exc, message, channel, deadline)
            except Unroutable as exc:
                self.check_return(exc, message.options, deadline)
                raise
            except NEVER_REPEATED:
                raise
            except IrrecoverableConnectionError:
                # Some message or declaration made the broker close the whole connection.
                message.is_isolated = True
                raise
            except self._session.broker.channel_errors:
                message.is_isolated = True
                channel = None
        self._publish_isolated(message, deadline)
        if channel is not None:
            self.retire(channel)  # it refused what another one takes

    def _publish_isolated(self, message: OutgoingMessage, deadline: Deadline) -> None:
        """Publish *message* while no other one is on its channel: an error is about this one."""
        channel = self._isolated.acquire(True, deadline)
        is_settled = False
        try:
            self.ensure_target(message.options, deadline)
            if deadline.has_ended:
                raise TimeoutError("the timeout has expired")
            message.begin(channel, deadline).wait(deadline)
            is_settled = True
        except PublishNacked as exc:
            # The next message has another channel, as above.
            self._check_nack(exc, message, channel, deadline)
            raise
        except Unroutable as exc:
            is_settled = True
            self.check_return(exc, message.options, deadline)
            raise
        except NEVER_REPEATED:
            raise
        except (IrrecoverableConnectionError, *self._session.broker.channel_errors) as exc:
            raise PublishRefused(
                f"{self.label} refused a message to {message.options}: {exc}"
            ) from exc
        finally:
            if is_settled and channel.is_open:
                self._isolated.release(channel)
            else:
                # What is still outstanding on it must not be blamed on the next message.
                self._isolated.remove(channel)

    def _open_shared(self) -> Any:
        self._channel = channel = self._open(Deadline(self._session.broker.connect_timeout))
        retired, self._retired = self._retired, []
        for each in retired:
            if each.is_open and each.has_unconfirmed:
                self._retired.append(each)
            else:
                spawn("retired-channel", _discard, each)  # it may be slow to answer
        return channel

    def _open(self, deadline: Deadline) -> Any:
        session = self._session
        channel = begin_channel(session.broker.transport, session.link(deadline))
        try:
            if hasattr(channel, "begin_confirms"):
                channel.begin_confirms()
            elif hasattr(channel, "confirm_select"):
                channel.confirm_select()
        except BaseException:
            _close(channel)
            raise
        return channel


class _NoLeader(TimeoutError):
    """A nack by an empty queue, which may be taken back by the next attempt."""

    def __init__(self, nack: PublishNacked) -> None:
        super().__init__(str(nack))
        self.nack = nack


def _discard(channel: Channel) -> None:
    try:
        _close(channel)
    except Exception as exc:
        logger.debug("closing %r: %s", channel, error_text(exc))


def _close(channel: Channel) -> None:
    if getattr(channel, "is_open", True):
        channel.close()
