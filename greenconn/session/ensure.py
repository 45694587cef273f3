"""kombu's ``ensure_connection`` and ``ensure``: connect, and retry what a loss interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NoReturn

from greenconn.checks import Seconds
from greenconn.exceptions import NEVER_REPEATED, ContentTooLarge, OperationalError
from greenconn.green.deadline import NEVER, Deadline, is_thrown
from greenconn.green.retry import RetryPolicy, attempts, sleep
from greenconn.options import ConnectOptions
from greenconn.session.session import Session

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.connection import Connection

#: Seconds between two calls of ``callback`` in a long wait (kombu's).
CALLBACK_INTERVAL: Final = 1.0

_RETRY_OPTIONS: Final = (
    "max_retries",
    "interval_start",
    "interval_step",
    "interval_max",
    "errback",
    "callback",
)


class NotConnected(OperationalError):
    """No broker could be reached in all attempts of a policy: ``ensure`` raises this at once."""


def retry_options(transport_options: dict[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of ``ensure_connection`` that *transport_options* name."""
    options = transport_options or {}
    chosen: dict[str, Any] = {name: options[name] for name in _RETRY_OPTIONS if name in options}
    if "connect_retries_timeout" in options:
        chosen["timeout"] = options["connect_retries_timeout"]
    return chosen


@contextmanager
def library_errors(
    connection: Connection, kind: type[OperationalError] = OperationalError
) -> Iterator[None]:
    """Raise what may be recovered from as :class:`OperationalError`, with its cause."""
    try:
        yield
    except (OperationalError, ContentTooLarge):
        raise
    except (
        *connection.recoverable_connection_errors,
        *connection.recoverable_channel_errors,
    ) as exc:
        if is_thrown(exc):
            raise
        raise kind(str(exc)) from exc


def ensure_open(
    connection: Connection,
    policy: ConnectOptions,
    deadline: Deadline,
    *,
    wraps_errors: bool = True,
) -> Any:
    """Return the open link, trying as often as *policy* says.  May switch.

    While this caller waits between two tries another may open the link: then it goes on at once.

    Arguments:
        policy: ``max_retries`` counts tries after the first, at one broker each.
        deadline: for all of it.
        wraps_errors: raise :class:`OperationalError` for what may be recovered from.

    Raises:
        OperationalError: with the last error as cause.
        Exception: an error that trying again does not help, or that *errback* raised.
    """
    session = connection.session

    def may_pass(exc: Exception) -> bool:
        return not (deadline.has_ended or session.is_final(exc))

    def pause(interval: float) -> None:
        _pause(session, interval, deadline, policy.callback)

    interval = policy.interval_start
    # The last attempt begins when the deadline has ended: another may have opened the link, and
    # else its error names the time.
    for attempt in attempts(
        _retry_policy(policy, round=session.broker.hosts), NEVER, may_pass, pause=pause
    ):
        try:
            outcome = session.attempt(deadline, reopen=True, interval=interval)
        except TimeoutError as exc:
            if not deadline.has_ended:
                raise  # not the timeout of this call
            _give_up(exc, attempt.error, wraps_errors)
        with library_errors(connection, NotConnected) if wraps_errors else nullcontext(), attempt:
            return outcome.result()
        interval = attempt.interval
        if policy.callback is not None:
            policy.callback()
        if policy.errback is not None and attempt.error is not None:
            policy.errback(attempt.error, interval)
    raise AssertionError("unreachable")


def _give_up(exc: TimeoutError, last: Exception | None, wraps: bool) -> NoReturn:
    if wraps:
        raise NotConnected(str(exc)) from (last or exc)
    raise exc from last


def _pause(
    session: Session, interval: float, deadline: Deadline, callback: Callable[[], Any] | None
) -> None:
    pause = deadline.within(interval)
    whole = 0 if callback is None else int(interval // CALLBACK_INTERVAL)
    while not session.is_open and not pause.has_ended:
        left = pause.left() or 0.0
        if whole and callback is not None:
            whole -= 1
            callback()
            left = min(left, CALLBACK_INTERVAL)
        session.pause(left)


def ensured(
    connection: Connection,
    obj: Any,
    fun: Callable[..., Any],
    policy: ConnectOptions,
    *,
    on_revive: Callable[[Any], Any] | None = None,
    retry_errors: tuple[type[BaseException], ...] = (),
    timeout: Seconds | Deadline | None = None,
) -> Callable[..., Any]:
    """Return *fun* as a function that is called again when it fails for want of a connection.

    Errors in :data:`~greenconn.exceptions.NEVER_REPEATED` are raised at once: what they were about
    may have been done.  The first repetition follows at once (after reconnecting), further ones
    after the policy's intervals.  A link that is still open is kept, whatever the error was: it is
    shared with others.

    Arguments:
        connection: where to find errors, links and the channel.
        obj: its ``revive(channel)`` is called with the new default channel before a repetition.
        fun: what to call.
        policy: how often, and after which pauses.
        on_revive: called with the channel after ``obj.revive``.
        retry_errors: further errors that are repeated, without reviving.
        timeout: seconds, or a deadline, for all calls and pauses together; None has no end.
    """
    call = _Ensured(connection, obj, fun, policy, on_revive, tuple(retry_errors))

    def _ensured(*args: Any, **kwargs: Any) -> Any:
        return call(Deadline.of(timeout), args, kwargs)

    _ensured.__name__ = f"{getattr(fun, '__name__', type(fun).__name__)}(ensured)"
    _ensured.__doc__ = getattr(fun, "__doc__", None)
    _ensured.__module__ = getattr(fun, "__module__", None) or __name__
    return _ensured


class _Ensured:
    """The callable that :func:`ensured` returns."""

    def __init__(
        self,
        connection: Connection,
        obj: Any,
        fun: Callable[..., Any],
        policy: ConnectOptions,
        on_revive: Callable[[Any], Any] | None,
        retry_errors: tuple[type[BaseException], ...],
    ) -> None:
        self._connection = connection
        self._obj = obj
        self._fun = fun
        self._policy = policy
        self._on_revive = on_revive
        self._retry_errors = retry_errors

    def __call__(self, deadline: Deadline, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        session = self._connection.session
        must_revive = was_revived = False

        def may_repeat(exc: Exception) -> bool:
            if isinstance(exc, NEVER_REPEATED):
                return False
            session.note_error(exc)
            return self._may_repeat(exc) and not (was_revived and self._is_hopeless(exc))

        def pause(interval: float) -> None:
            # Where a link must be opened, that is what takes time.
            if session.is_open or not must_revive:
                sleep(interval)

        policy = _retry_policy(self._policy, immediate=1)
        with library_errors(self._connection):
            for attempt in attempts(policy, deadline, may_repeat, pause=pause):
                if must_revive and not session.is_open:
                    left = self._remaining(attempt.number - 2)
                    ensure_open(self._connection, left, deadline, wraps_errors=False)
                with attempt:
                    if must_revive:
                        # Here, since the link that was just opened may be lost again.
                        self._revive(deadline)
                        was_revived = True
                    return self._fun(*args, **kwargs)
                must_revive = not isinstance(attempt.error, self._retry_errors)
                if self._policy.errback is not None and must_revive and attempt.error is not None:
                    self._policy.errback(attempt.error, attempt.interval)
                if attempt.number == 1:
                    pause(0.0)
        raise AssertionError("unreachable")

    def _may_repeat(self, exc: Exception) -> bool:
        if isinstance(exc, ContentTooLarge):
            return isinstance(
                exc, self._retry_errors
            )  # its channel is recovered, the message stays
        connection = self._connection
        errors = connection.recoverable_connection_errors
        if isinstance(exc, OperationalError):
            if isinstance(exc, NotConnected) and not connection.session.is_open:
                return False
            if isinstance(exc.__cause__, errors):
                # What opening the default channel inside of *fun* made of an error to connect.
                # Another greenlet may have connected since.
                return True
        return isinstance(
            exc, (*self._retry_errors, *errors, *connection.recoverable_channel_errors)
        )

    def _is_hopeless(self, exc: Exception) -> bool:
        """Return whether *exc* may come for ever: its transport does not know which errors pass."""
        broker = self._connection.session.broker
        return not broker.knows_recoverable_errors and isinstance(exc, broker.connection_errors)

    def _revive(self, deadline: Deadline) -> None:
        channel = self._connection.session.default_channel(deadline, reopen=True)
        self._obj.revive(channel)
        if self._on_revive is not None:
            self._on_revive(channel)

    def _remaining(self, retries: int) -> ConnectOptions:
        limit = self._policy.max_retries
        left = None if limit is None else max(limit - retries, 1)
        return self._policy.replace(max_retries=left)


def _retry_policy(policy: ConnectOptions, **values: int) -> RetryPolicy:
    retries = policy.max_retries
    return RetryPolicy(
        first=policy.interval_start,
        step=policy.interval_step,
        factor=1.0,
        longest=policy.interval_max,
        jitter=0.0,
        tries=None if retries is None else retries + 1,
        **values,
    )


class Revival:
    """The object that ``autoretry`` ensures: a function that takes a ``channel``.

    Arguments:
        connection: gives the channel when there is none.
        fun: called with ``channel=...``.
        channel: to begin with, or None.
        open_connection: opens the connection as the policy of ``autoretry`` says.
    """

    def __init__(
        self,
        connection: Connection,
        fun: Callable[..., Any],
        channel: Channel | None,
        open_connection: Callable[[], Any],
    ) -> None:
        self.connection = connection
        self._fun = fun
        self._channel = channel
        self._open_connection = open_connection
        self.__name__ = getattr(fun, "__name__", type(fun).__name__)
        self.__doc__ = getattr(fun, "__doc__", None)
        self.__module__ = getattr(fun, "__module__", None) or __name__

    def revive(self, channel: Channel) -> None:
        """Use *channel* from now on."""
        self._channel = channel

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if self._channel is None:
            self._open_connection()
            self.revive(self.connection.default_channel)
        return self._fun(*args, channel=self._channel, **kwargs), self._channel
