"""Recovery of a lost connection in the background, with all members of its session.

After a loss one greenlet opens links until one stays open, and recovers the members on it in the order
of their registration: consumers declare and consume again, for example.  If that link is lost
meanwhile, all members are due again on the next one.

A member that fails for a reason that may pass is retried by a greenlet of its own, so that one
exclusive queue that the broker still holds does not delay a thousand consumers.  Recovery ends when no
member is due, when the session is closed, or when an error is final (see ``connect``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent import Greenlet
from greenlet import getcurrent

from greenconn.exceptions import RecoverableConnectionError, error_text, raise_error
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import spawn
from greenconn.session.broker import Broker
from greenconn.session.state import Life

if TYPE_CHECKING:
    from greenconn.abc import Recoverable
    from greenconn.session.session import Session

logger = logging.getLogger("greenconn.session")

#: Seconds that one member may take to be restored: a few round trips, each bounded by the transport.
RESTORE_TIMEOUT: Final = 30.0
#: For a member that cannot be restored now, as long as the life lasts.
RESTORING: Final = RetryPolicy(first=0.2, longest=10.0)


class Members:
    """Objects with ``recover(deadline)``, kept by strong reference in the order of registration.

    When a life ends all of them are *due*: they have to be restored on the next one.  A member whose
    restoring fails for a temporary reason (an exclusive queue that the broker still holds for the
    old connection, a reply that did not come) is tried again by itself, with back-off, as long as
    the life lasts, so that it does not delay the others.  A member that cannot be restored is
    removed: its ``failed(exc)`` is called, if it has one, else ``drain_events`` raises the error.

    Arguments:
        broker: says whether an error of ``recover`` may pass.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        # By identity: a member need not be hashable, and equal ones are not the same.
        self._all: dict[int, Recoverable] = {}
        self._due: dict[int, Recoverable] = {}
        self._retries: set[Greenlet[..., Any]] = set()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def are_due(self) -> bool:
        """Whether there is an object to recover."""
        return bool(self._due)

    def add(self, member: Recoverable) -> None:
        """Register *member*; again: changes nothing."""
        self._all.setdefault(id(member), member)

    def discard(self, member: Recoverable) -> None:
        """Forget *member*."""
        self._all.pop(id(member), None)
        self._due.pop(id(member), None)

    def clear(self) -> None:
        """Forget all."""
        self._all.clear()
        self._due.clear()
        self.stop_retries()

    def mark_due(self) -> None:
        """Mark all members as due, as a life has ended.  Never switches."""
        self.stop_retries()
        self._due = dict(self._all)

    def stop_retries(self) -> None:
        """Give up what is tried again apart.  Never switches."""
        retries, self._retries = self._retries, set()
        for greenlet in retries:
            if greenlet is not getcurrent():
                greenlet.kill(block=False)

    def forget(self) -> None:
        """After a fork, in the child: members are the parent's."""
        self.clear()

    def recover(self, life: Life) -> None:
        """Restore all that are due, in order, while *life* lasts.  May switch."""
        while self._due and life.is_open:
            key, member = next(iter(self._due.items()))
            try:
                member.recover(Deadline(RESTORE_TIMEOUT))
            except Exception as exc:
                if life.is_over:
                    return  # lost again: it stays due
                self._due.pop(key, None)
                if self._broker.is_transient(exc):
                    logger.info(
                        "recovery of %r failed, and is tried again: %s",
                        member,
                        error_text(exc),
                        extra={"connection": self._broker.label},
                    )
                    self._retry_apart(life, member, exc)
                else:
                    self.fail(life, member, exc)
            else:
                # A life that was lost in the last moment has made it due again.
                if life.is_open:
                    self._due.pop(key, None)

    def fail_all(self, exc: BaseException) -> None:
        """Tell the members that have ``failed`` that recovery was given up; they stay members."""
        for member in list(self._due.values()):
            _notify_failure(member, exc)

    def fail(self, life: Life, member: Recoverable, exc: BaseException) -> None:
        """Part with a member that cannot be restored.  May switch."""
        logger.error(
            "%r cannot be recovered: %s",
            member,
            error_text(exc),
            extra={"connection": self._broker.label},
        )
        self.discard(member)
        if not _notify_failure(member, exc):
            events = getattr(life.link, "events", None)
            if events is not None:
                events.put((raise_error, exc))

    def _retry_apart(self, life: Life, member: Recoverable, failure: Exception) -> None:
        greenlet = spawn("recover-again", self._retry, life, member, failure)
        self._retries.add(greenlet)
        greenlet.rawlink(self._retries.discard)

    def _retry(self, life: Life, member: Recoverable, failure: Exception) -> None:
        def may_pass(exc: Exception) -> bool:
            return not life.is_over and self._broker.is_transient(exc)

        try:
            for attempt in attempts(RESTORING, NEVER, may_pass, failure=failure):
                if not life.is_open or id(member) not in self._all:
                    return
                with attempt:
                    member.recover(Deadline(RESTORE_TIMEOUT))
                    logger.info(
                        "%r was recovered", member, extra={"connection": self._broker.label}
                    )
                    return
                logger.debug(
                    "recovery of %r failed again: %s",
                    member,
                    attempt.error,
                    extra={"connection": self._broker.label},
                )
        except Exception as exc:
            if not life.is_over:
                self.fail(life, member, exc)


class SessionRecovery:
    """A greenlet that opens links and restores members on them, until none is due.

    Arguments:
        session: opens the links, with its own pace.
        members: who is restored.
        finish: called at the end with the error that ended it, or None, and the seconds it took.
    """

    def __init__(
        self,
        session: Session,
        members: Members,
        finish: Callable[[BaseException | None, float], None],
    ) -> None:
        self._session = session
        self._members = members
        self._finish = finish
        self._greenlet: Greenlet[..., Any] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._greenlet is not None and not self._greenlet.dead

    def begin(self) -> None:
        """Begin unless it has begun.  Never switches."""
        if not self.is_running:
            self._greenlet = spawn("recovery", self._run)

    def stop(self) -> None:
        """End without calling *finish*.  Never switches."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not getcurrent():
            greenlet.kill(block=False)

    def _run(self) -> None:
        began = monotonic()
        error: BaseException | None = None
        try:
            error = self._recover_all()
        except Exception as exc:
            # In another greenlet: a log handler may switch, and a loss meanwhile would find this one.
            spawn("log", logger.error, "recovery failed", exc_info=exc)
            error = exc
        except BaseException:
            # It was killed: its waiters must not wait forever.
            error = RecoverableConnectionError("recovery was interrupted")
            raise
        finally:
            if self._greenlet is getcurrent():
                self._greenlet = None
                self._finish(error, monotonic() - began)

    def _recover_all(self) -> BaseException | None:
        """Open links and restore members until none is due; the error if that is of no use."""
        session, members = self._session, self._members
        while members.are_due:
            if session.life.is_open:
                members.recover(session.life)
                session.notice_loss()
                continue
            outcome = session.attempt()
            if outcome.error is not None and session.is_final(outcome.error):
                return outcome.error
        return None


def _notify_failure(member: Recoverable, exc: BaseException) -> bool:
    failed = getattr(member, "failed", None)
    if failed is None:
        return False
    try:
        failed(exc)
    except Exception:
        logger.exception("the failure callback of %r failed", member)
    return True
