"""A session: one logical connection, which survives the loss of its links.

A session has at most one link (one open socket and its state) at a time.  The time of one link is a
*life*.  These rules hold:

- Opening is single-flight: a greenlet that finds no link joins the attempt under way, or begins one.
  A thousand greenlets that find the connection dead cause one pass through the failover list.
- A life is replaced as a whole.  Late events of a former life are dropped, by its identity.
- A session with members (consumers, say) replaces a lost link in the background until ``close()``, and
  restores its members in the order of registration.  Without members the next use opens a link.
- What was declared is declared again on a new link before the link is used.
- When every broker of the list refuses the login in turn (wrong password, no such virtual host)
  recovery ends with that error.  All waiters get it, and members with a method ``failed(exc)`` do, too.
  They are restored if a later explicit use succeeds.
- Nothing switches while the state is half changed: decide first, wait after.

All attributes belong to the session's hub; none is touched from a hub callback.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from gevent import get_hub

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green import fork
from greenconn.green.deadline import Deadline
from greenconn.green.hub import HubAffinity, PerHub, yield_to_hub
from greenconn.green.slot import Condition
from greenconn.green.state import moved
from greenconn.green.supervisor import spawn
from greenconn.listeners import LISTENERS, ConnectEvent, DisconnectEvent, notify
from greenconn.session.broker import Broker
from greenconn.session.channels import Channels, UtilityChannels, begin_channel
from greenconn.session.connect import Connector, ConnectOutcome
from greenconn.session.recovery import Members, SessionRecovery
from greenconn.session.services import SessionServices
from greenconn.session.state import MOVES, Life, SessionState, drop, is_open
from greenconn.session.topology import Topology

if TYPE_CHECKING:
    from greenconn.abc import Channel, Recoverable

logger = logging.getLogger("greenconn.session")


#: Used for each event that is drained: looking up a member of an Enum has a cost.
_OPEN: Final = SessionState.OPEN
_CLOSED: Final = SessionState.CLOSED


class Listeners(list[Callable[..., Any]]):
    """A list of callbacks; an error of one does not keep the others from being called."""

    def notify(self, *args: Any) -> None:
        """Call each in a greenlet of its own.  Never switches."""
        for listener in self:
            spawn("listener", self._call, listener, args)

    def call(self, *args: Any) -> None:
        """Call each in this greenlet, to the last.  May switch.

        Raises:
            BaseException: the first error that a callback raised, or that was thrown in meanwhile.
        """
        first: BaseException | None = None
        for listener in list(self):
            try:
                listener(*args)
            except BaseException as exc:
                first = first or exc
        if first is not None:
            raise first

    def _call(self, listener: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            listener(*args)
        except Exception:
            logger.exception("a listener of a connection failed: %r", listener)


class Session:
    """One logical connection to *broker*.

    Attributes:
        life: the current life; between two lives one that is not open.
        generation: the number of links so far.
        changed_at: when the session has reached its state (``time.time()``).
        lost: the error that ended the last life; None before, and while a link is open.
        purpose: use of the connection, for the log, where the library made it for one alone.
        services: objects of other modules that live as long as this session.
        utility: channels for calls that may fail and so close their channel.
        topology: the declarations, which are repeated on the next link.
        on_connection_lost, on_recovered: see ``Connection``.
        on_closed: called without arguments at the end of ``close``, in its greenlet.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.life = Life()
        self.generation = 0
        self.lost: BaseException | None = None
        self.on_connection_lost = Listeners()
        self.on_recovered = Listeners()
        self.on_closed = Listeners()
        self.purpose = ""
        self._state = SessionState.IDLE
        self.changed_at = time()
        self._hub_affinity: HubAffinity | None = None
        self._connector = Connector(broker, self._prepare, self._begin_life, self._attempt_failed)
        self.topology = Topology(lambda: broker.label)
        self._members = Members(broker)
        #: Made when it is first needed: a connection whose channels the program opens needs none.
        self._made_channels: Channels | None = None
        self.utility = UtilityChannels(self)
        self.services = SessionServices()
        self._recovery = SessionRecovery(self, self._members, self._end_recovery)
        self._changed = Condition()

    def __repr__(self) -> str:
        return f"<Session {self.broker.label}: {self._state.value}, life {self.generation}>"

    @property
    def state(self) -> SessionState:
        """The stage that the session has reached."""
        return self._state

    @property
    def is_open(self) -> bool:
        """Whether there is a link that may be used."""
        return self.life.is_open

    @property
    def is_lost(self) -> bool:
        """Whether the last link was lost and is not replaced yet."""
        return self.lost is not None or (self.life.link is not None and self.life.is_over)

    @property
    def may_be_lost(self) -> bool:
        """Whether the last link was lost, or cannot tell, as those of kombu's contract."""
        life = self.life
        return self.is_lost or (life.link is not None and not life.can_tell)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed and has not been used since."""
        return self._state is _CLOSED

    def link(
        self,
        deadline: Deadline | None = None,
        *,
        reopen: bool = False,
        rounds: int | None = None,
        interval: float | None = None,
    ) -> Any:
        """Return the open link, or open one.  May switch.

        It does not wait until members are restored; see :meth:`wait_ready`.

        Arguments:
            deadline: for trying all brokers; without an end it is ``connect_timeout`` for each, and the
                shares of the first round.
            reopen: open a closed session again.
            rounds: failed rounds through the failover list after which to give up, even before the
                deadline.
            interval: seconds between rounds, if that is shorter than the session's own back-off.

        Raises:
            TimeoutError: no attempt ended before the deadline.
            RecoverableConnectionError: the session was closed, before or meanwhile.
            Exception: the error of the last attempt.
        """
        life = self.life
        if life.is_open:
            self._bind_to_hub()
            return life.link
        deadline, rounds = self._connector.limits(deadline, rounds)
        failures = 0
        last: ConnectOutcome | None = None
        while True:
            try:
                outcome = self.attempt(deadline, reopen=reopen, interval=interval)
            except TimeoutError:
                if last is None or not deadline.has_ended:
                    raise
                return last.result()  # its error says more than a timeout
            last = outcome
            if outcome.error is None or self.is_final(outcome.error) or deadline.has_ended:
                return outcome.result()
            failures += 1
            if self.is_closed or (rounds and failures >= rounds * self.broker.hosts):
                return outcome.result()

    def attempt(
        self,
        deadline: Deadline | None = None,
        *,
        reopen: bool = False,
        interval: float | None = None,
    ) -> ConnectOutcome:
        """Return the open link, or the outcome of the next attempt to open one.  May switch.

        An attempt that had only a share of ``connect_timeout`` is followed by the next one.

        Arguments:
            deadline: how long to wait for that attempt.
            reopen: open a closed session again.
            interval: seconds to wait after the last failure, if that is shorter than the session's
                own back-off.

        Raises:
            TimeoutError: the attempt did not end before the deadline; it goes on.
            RecoverableConnectionError: the session is closed.
        """
        self._bind_to_hub()
        deadline = deadline or Deadline()
        cut: ConnectOutcome | None = None
        while True:
            if self.life.is_open:
                return ConnectOutcome(self.life.link)
            self.notice_loss()
            if self.is_closed and (cut is not None or not reopen):
                raise self._closed_error()
            if self._state is not SessionState.RECOVERING:
                self._move(SessionState.OPENING)
            try:
                outcome = self._connector.join(deadline, interval)
            except TimeoutError:
                if cut is None or not deadline.has_ended:
                    raise
                return cut  # its error says more than a timeout
            if not outcome.is_cut:
                return outcome
            cut = outcome

    def ready_life(self) -> Life | None:
        """Return the current life if its members are restored, else None.  Never switches."""
        life = self.life
        # For each event that is drained, so without a call of life.is_open.
        if self._state is _OPEN and (life.link.lost is None if life.keeps_lost else life.is_open):
            affinity = self._hub_affinity
            if affinity is not None and get_hub() is not affinity.hub:
                affinity.check(self)
            return life
        return None

    def wait_ready(self, deadline: Deadline) -> Life:
        """Return the current life once its members are restored.  May switch.

        Raises:
            TimeoutError: recovery was still under way at the deadline.
            RecoverableConnectionError: the session was closed, before or meanwhile.
            Exception: the error of opening a link, where there is no member to restore.
        """
        while True:
            life = self.ready_life()
            if life is not None:
                return life
            self._bind_to_hub()
            if deadline.has_ended or self.is_closed:
                yield_to_hub()  # the caller may poll, or ignore the error, and other greenlets must run
            self.notice_loss()
            if self._state is SessionState.RECOVERING:
                self._changed.wait(deadline)
            elif not self.is_open:
                self.link(deadline)

    def wait_settled(self, deadline: Deadline) -> None:
        """Wait until no opening or recovery is under way, whatever its outcome.  May switch.

        Raises:
            TimeoutError: it was still under way at the deadline.
            RecoverableConnectionError: the session was closed meanwhile.
        """
        while self._state is SessionState.OPENING:
            self.attempt(deadline)
        while self._state is SessionState.RECOVERING:
            self._changed.outcome(deadline)

    def pause(self, seconds: float) -> None:
        """Wait until there is a link, but not longer than *seconds*.  May switch.

        Raises:
            RecoverableConnectionError: the session was closed meanwhile.
        """
        deadline = Deadline(seconds)
        while not self.is_open and not deadline.has_ended:
            try:
                self._changed.wait(deadline)
            except TimeoutError:
                if not deadline.has_ended:
                    raise  # a timeout of the caller's, around this call

    def is_final(self, exc: BaseException) -> bool:
        """Return whether another attempt would be useless after this error."""
        return self._connector.is_final(exc)

    def add(self, member: Recoverable) -> None:
        """Restore *member* after each reconnect, from the next one on."""
        self._members.add(member)

    def discard(self, member: Recoverable) -> None:
        """Do not restore *member* any more."""
        self._members.discard(member)

    def default_channel(self, deadline: Deadline | None = None, *, reopen: bool = False) -> Any:
        """Return the shared default channel, opened if it is not open.  May switch.

        Raises:
            Exception: as :meth:`link`, or an error of the transport.
        """
        channel = self.life.default_channel
        if channel is not None and is_open(channel) and self.life.is_open:
            self._bind_to_hub()
            return channel
        return self._channels().default(deadline or Deadline(), reopen=reopen)

    def set_default_channel(self, channel: Channel) -> Any:
        """Make *channel* the default channel, and return the open one that it replaces, or None.

        Never switches.
        """
        return self._channels().set_default(channel)

    def _channels(self) -> Channels:
        channels = self._made_channels
        if channels is None:
            channels = self._made_channels = Channels(self)
        return channels

    def successor(self, old_channel: Any, deadline: Deadline | None = None) -> Any:
        """Return the channel that replaces *old_channel*.  May switch.

        That is itself while it is open, the default channel if it was that, else one opened in its
        place, with the same prefetch and confirm mode.  Raises as :meth:`link`.
        """
        return self._channels().successor(old_channel, deadline or Deadline())

    def close(self) -> None:
        """Close the link and end recovery; all waiters get an error.  May switch.

        Explicit use (``link(reopen=True)``) opens the session again, without its former members.
        """
        if self.is_closed:
            return
        self.check_hub()
        life = self._end(SessionState.CLOSED)
        try:
            if life.link is not None:
                self.broker.close(life.link)
        finally:
            self.on_closed.call()

    def note_use(self) -> None:
        """Note an explicit use, which opens a closed session later unless it is closed before that.

        Never switches.
        """
        if self.is_closed:
            self._move(SessionState.IDLE)

    def collect(self) -> None:
        """Drop the link at once, without a close on the wire; the next use opens a new one.

        Raises:
            WrongHub: the session belongs to another thread.
        """
        self.check_hub()
        self._drop(SessionState.CLOSED if self.is_closed else SessionState.IDLE)

    def restart(self) -> None:
        """Drop a link that was opened since a close, as another broker was chosen after it."""
        self._drop(SessionState.IDLE)

    def _drop(self, state: SessionState) -> None:
        link = self._end(state).link
        if link is not None:
            self._discard(link)

    def _discard(self, link: object) -> None:
        if hasattr(link, "is_open"):
            drop(link)
        else:
            self.broker.close(link)  # only its transport knows how

    def forget(self) -> None:
        """Forget all state in the child of a fork.  Never switches.

        Descriptors are closed by a hook of their own.
        """
        self.life.forget()
        self._connector.forget()
        self._members.forget()
        self.topology.clear()
        if self._made_channels is not None:
            self._made_channels.forget()
        self.utility.forget()
        self.services = SessionServices()
        self.life = Life()
        self._recovery.stop()
        self._changed.forget()
        self._hub_affinity = None
        _in_use.get().discard(self)
        if not self.is_closed:
            self._state = SessionState.IDLE

    def _prepare(self, link: object) -> None:
        self.topology.restore(link, partial(begin_channel, self.broker.transport, link))

    def _begin_life(self, link: object) -> None:
        self.generation += 1
        life = self.life = Life(link, self.generation, self.broker.transport)
        was_lost, self.lost = self.lost is not None, None
        self.topology.record(link, partial(begin_channel, self.broker.transport, link))
        if hasattr(link, "on_lost"):
            link.on_lost = lambda exc: self._end_life(life, exc)
        self._log(logging.INFO, "connected to %s")
        if (calls := LISTENERS.connect) is not None:
            opened = ConnectEvent(self.broker.label, life.generation, self._connector.duration)
            spawn("listener", notify, calls, opened)
        is_open = self._arrive()
        if was_lost and is_open:
            self.on_recovered.notify()

    def _arrive(self) -> bool:
        """Begin to recover the members on a new link, or be open without; return whether it is open.

        Never switches.
        """
        is_recovering = self._state is SessionState.RECOVERING and self._recovery.is_running
        if self._members.are_due:
            self._begin_recovery()
        elif not is_recovering:
            self._move(_OPEN)
        self._changed.wake_all()
        return self._state is _OPEN

    def _attempt_failed(self) -> None:
        if self._state is SessionState.OPENING:
            self._move(SessionState.IDLE)

    def notice_loss(self) -> None:
        """End the life of a link that is lost, if its callback has not come yet.

        The handler of a signal may raise amid a change of the life and the state.  What was left of it
        then is done here, too.
        """
        life = self.life
        is_abandoned = self._state is SessionState.RECOVERING and not self._recovery.is_running
        if life.link is None:
            if self._state is _OPEN or is_abandoned:
                self._move(SessionState.IDLE)
        elif not life.is_open:
            self._end_life(life, getattr(life.link, "lost", None) or self._closed_error())
        elif self._state is SessionState.OPENING or is_abandoned:
            self._arrive()

    def note_error(self, exc: BaseException) -> None:
        """End the life of a link without callbacks, after an error that means its loss.

        Never switches.
        """
        life = self.life
        if life.link is None or life.can_tell or isinstance(exc, TimeoutError):
            return
        if isinstance(exc, self.broker.connection_errors):
            self._end_life(life, exc)
            spawn("close-lost-link", self.broker.close, life.link)

    def _end_life(self, life: Life, exc: BaseException) -> None:
        """End the life of a lost link, if it is the current one.  Never switches."""
        if life is not self.life or life.link is None:
            return
        self.lost = exc
        self._connector.fail_over()
        self.topology.stop()
        self._members.mark_due()
        text = "connection to %s lost: %s; %d objects to recover"
        self._log(logging.WARNING, text, exc, len(self._members))
        if self._members.are_due:
            self._begin_recovery()
        elif self._state is not SessionState.RECOVERING:
            self._move(SessionState.IDLE)
        # Behind the changes that are done again if a signal interrupts them.
        self.life = Life()
        self.on_connection_lost.notify(exc)
        self._notify_end(life, exc)
        self._changed.wake_all()

    def _begin_recovery(self) -> None:
        self._move(SessionState.RECOVERING)
        self._recovery.begin()

    def _end_recovery(self, error: BaseException | None, seconds: float) -> None:
        """End the recovery: all is restored, or *error* says why it was given up."""
        if self._state is not SessionState.RECOVERING:
            return
        if self.life.is_open:
            state = SessionState.OPEN
        elif self._connector.is_under_way:
            state = SessionState.OPENING
        else:
            state = SessionState.IDLE
        self._move(state)
        self._changed.wake_all(error)
        if error is not None:
            self._log(logging.ERROR, "connection to %s: recovery failed: %s", error)
            self._members.fail_all(error)
        elif self.life.is_open:
            self._log(logging.WARNING, "connection to %s recovered after %.1f s", seconds)
            self.on_recovered.notify()

    def _end(self, state: SessionState) -> Life:
        """End the current life without a switch, and return it."""
        # The state last: what a signal interrupts can be called again.
        exc = self._closed_error()
        self._hub_affinity = None
        _in_use.get().discard(self)
        self.lost = None
        self._members.clear()
        self.topology.clear()
        if self._made_channels is not None:
            self._made_channels.forget()
        self.utility.drop()
        self._connector.reset(exc)
        self._recovery.stop()
        self._changed.wake_all(exc)
        life, self.life = self.life, Life()
        self._move(state)
        if life.link is not None:
            self._notify_end(life, None)
        return life

    def _notify_end(self, life: Life, error: BaseException | None) -> None:
        if (calls := LISTENERS.disconnect) is not None:
            ended = DisconnectEvent(self.broker.label, life.generation, error)
            spawn("listener", notify, calls, ended)

    def _move(self, state: SessionState) -> None:
        if state is not self._state:
            self.changed_at = time()
        self._state = moved(self._state, state, MOVES, "a session")

    def _log(self, level: int, text: str, *args: object) -> None:
        """Log *text*, which names the broker first, in another greenlet.  Never switches.

        A log handler may switch, and the state must not be left half changed meanwhile.
        """
        if logger.isEnabledFor(level):
            label = self.broker.label
            shown = f"{label} ({self.purpose})" if self.purpose else label
            spawn("log", logger.log, level, text, shown, *args, extra={"connection": label})

    def _closed_error(self) -> RecoverableConnectionError:
        return RecoverableConnectionError(f"connection to {self.broker.label} was closed")

    def check_hub(self) -> None:
        """Raise if it is in use by another thread.  Never switches.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        affinity = self._hub_affinity
        if affinity is not None and get_hub() is not affinity.hub:
            affinity.check(self)

    def _bind_to_hub(self) -> None:
        if self._hub_affinity is None:
            self._hub_affinity = HubAffinity()
            fork.register(self)
            _in_use.get().add(self)
        else:
            self._hub_affinity.check(self)


_in_use: Final[PerHub[WeakSet[Session]]] = PerHub(WeakSet)


def sessions_in_use() -> list[Session]:
    """Return the sessions of this thread that were used and not closed since.  Never switches."""
    # One that is only looked at after its end is there again.
    return [each for each in _in_use.get() if not each.is_closed]
