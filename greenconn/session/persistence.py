"""The part of a connection that opens it, and tries again what its loss interrupted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from greenconn.green.deadline import Deadline
from greenconn.options import ConnectOptions
from greenconn.session.attributes import Shared
from greenconn.session.capabilities import Capabilities
from greenconn.session.listeners import Listeners
from greenconn.session.retry import Revival, ensure_open, ensured, library_errors, retry_options

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.abc import Channel

__all__ = ["Persistent"]

#: Seconds that an explicit ``connect()`` waits at most when an earlier attempt has just failed.
CONNECT_INTERVAL: Final = 0.2


class Persistent(Capabilities):
    """Connecting, the default channel, and functions that survive the loss of either."""

    #: Functions that are called with the reason when the connection was lost: ``append`` yours.  Each
    #: call has a greenlet of its own; what it raises is logged.
    on_connection_lost = Shared[Listeners](Listeners(), lambda session: session.on_connection_lost)
    #: Functions that are called, without arguments, when a lost connection is open again and all is
    #: restored: what was declared, and consumers.
    on_recovered = Shared[Listeners](Listeners(), lambda session: session.on_recovered)

    def connect(self) -> Any:
        """Open the connection now, and return the transport's own object for it.  May switch.

        Raises:
            Exception: the transport's error when each broker of the list was tried once.
        """
        return self.session.link(reopen=True, rounds=1, interval=CONNECT_INTERVAL)

    def ensure_connection(
        self,
        errback: Callable[[Exception, float], Any] | None = None,
        max_retries: float | None = None,
        interval_start: float = 2,
        interval_step: float = 2,
        interval_max: float = 30,
        callback: Callable[[], Any] | None = None,
        reraise_as_library_errors: bool = True,
        timeout: float | Deadline | None = None,
    ) -> Self:
        """Open the connection if it is not open, trying as often as is said here.  May switch.

        Arguments:
            errback: called with each error and the seconds until the next attempt.
            max_retries: attempts after the first; None and infinity never give up.
            interval_start: seconds to wait after the first round over the brokers of the list.
            interval_step: seconds by which each wait is longer than the one before.
            interval_max: seconds that no wait exceeds.
            callback: called before each wait, and at the beginning of each whole second of it.
            reraise_as_library_errors: raise OperationalError rather than the transport's error.
            timeout: seconds for all of it; None or 0 has no end.

        Raises:
            OperationalError: all attempts failed; the last error is its cause.
            Exception: an error that trying again does not help, as a refused login.
        """
        if self.session.is_open:
            self.session.link()  # which tells who comes from another thread
        else:
            policy = ConnectOptions(
                errback=errback,
                max_retries=_limit(max_retries),
                interval_start=interval_start,
                interval_step=interval_step,
                interval_max=interval_max,
                callback=callback,
            )
            ensure_open(
                self,
                policy,
                Deadline.of(timeout or None),
                wraps_errors=reraise_as_library_errors,
            )
        return self

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self._is_connected()

    def _is_connected(self) -> bool:
        session = self.session
        return session.is_open and bool(
            session.broker.transport.verify_connection(session.life.link)
        )

    @property
    def connection(self) -> Any:
        """The transport's own object, opened if need be; None when closed.  May switch."""
        return None if self.session.is_closed else self.connect()

    def channel(self) -> Any:
        """Open a channel.  May switch."""
        link = self.session.link(reopen=True)
        return self.transport.create_channel(link)

    def update_secret(self, secret: str, reason: str = "", *, timeout: float | None = None) -> None:
        """Change the password of this login while the connection is open, as OAuth 2 asks for.

        Later attempts to connect use it too, unless the password is a function or there is a
        ``credential_provider``: these are asked then.  A connection that is not open opens nothing.
        May switch.

        Arguments:
            reason: for the broker's log.
            timeout: seconds to wait for the broker's answer; None is the transport's own.

        Raises:
            ConnectionError: the broker refused it, and ended the connection for that.
            TimeoutError: it did not answer in time.
            NotImplementedError: the transport knows no such thing.
        """
        session = self.session
        broker = session.broker
        if session.is_open:
            deadline = Deadline(timeout)
            broker.transport.update_secret(session.link(), secret, reason, deadline)
        if not callable(self.password) and self.credential_provider is None:
            broker.change("password", secret)

    @property
    def default_channel(self) -> Any:
        """A channel that all share: opened when first needed, and again after an error.  May switch.

        ``transport_options`` may say how often to try to connect (``max_retries``,
        ``interval_start``, ``interval_step``, ``interval_max``, ``errback``, ``callback``,
        ``connect_retries_timeout``); otherwise it gives up after ``connect_timeout``.

        Raises:
            OperationalError: no broker could be reached.
        """
        session = self.session
        if not session.is_open:
            options = retry_options(self.transport_options)
            if options:
                self.ensure_connection(**{"timeout": self.connect_timeout, **options})
            else:
                with library_errors(self):
                    session.link(reopen=True)
        return session.default_channel(reopen=True)

    @property
    def ready_channel(self) -> Any:
        """The default channel if it is open now, else None.  Never switches."""
        channel = self.session.life.default_channel
        return channel if getattr(channel, "is_open", True) else None

    def ensure(
        self,
        obj: Any,
        fun: Callable[..., Any],
        errback: Callable[[Exception, float], Any] | None = None,
        max_retries: float | None = None,
        interval_start: float = 1,
        interval_step: float = 1,
        interval_max: float = 1,
        on_revive: Callable[[Any], Any] | None = None,
        retry_errors: tuple[type[BaseException], ...] | None = None,
        *,
        timeout: float | Deadline | None = None,
    ) -> Callable[..., Any]:
        """Return *fun* as a function that survives the loss of connection and channel.

        Errors whose operation may have been done (``PublishTimeout`` and the like,
        :data:`greenconn.exceptions.NEVER_REPEATED`) are raised at once.

        Arguments:
            obj: its ``revive(channel)`` is called before *fun* is called again.
            fun: what to call.
            errback: called with each error of connection or channel, and the seconds until the next
                attempt.
            max_retries: calls after the first; None and infinity never give up.
            interval_start, interval_step, interval_max: seconds between attempts.
            on_revive: called with the channel after ``obj.revive``.
            retry_errors: further errors after which *fun* is simply called again.
            timeout: seconds for one call of the result, with everything in it; None has no end.

        Raises:
            OperationalError: (the function returned) it gave up; the last error is its cause.
        """
        policy = ConnectOptions(
            errback=errback,
            max_retries=_limit(max_retries),
            interval_start=interval_start,
            interval_step=interval_step,
            interval_max=interval_max,
        )
        return ensured(
            self,
            obj,
            fun,
            policy,
            on_revive=on_revive,
            retry_errors=retry_errors or (),
            timeout=timeout,
        )

    def _reraise_as_library_errors(self) -> AbstractContextManager[None]:
        # Celery's applications use it around each task that they send.
        return library_errors(self)

    def autoretry(
        self, fun: Callable[..., Any], channel: Channel | None = None, **ensure_options: Any
    ) -> Callable[..., tuple[Any, Any]]:
        """Return a function that calls *fun* with ``channel=...``, as :meth:`ensure` does.

        It returns what *fun* returned, and the channel used last.

        Arguments:
            channel: to begin with; None takes the default channel.
            ensure_options: see :meth:`ensure`; they hold for the first connecting, too.
        """
        names = ("errback", "max_retries", "interval_start", "interval_step", "interval_max")
        opening = {"timeout": self.connect_timeout, **retry_options(self.transport_options)}
        opening.update((name, ensure_options[name]) for name in names if name in ensure_options)
        revival = Revival(self, fun, channel, lambda: self.ensure_connection(**opening))
        return self.ensure(revival, revival, **ensure_options)


def _limit(max_retries: float | None) -> int | None:
    """Return the limit of retries; infinity, which oslo.messaging passes, is none."""
    return None if max_retries == inf else cast("int | None", max_retries)
