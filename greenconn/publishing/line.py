"""The way to the broker that all publishers of one connection share."""

from __future__ import annotations

from typing import Any, Final

import gevent

from greenconn.entity.existence import ensure_declared, ensure_queue_exists
from greenconn.exceptions import (
    ConnectionBlocked,
    OperationalError,
    PublishNacked,
    PublishRefused,
    PublishTimeout,
    Unroutable,
    WrongHub,
)
from greenconn.green.deadline import Deadline
from greenconn.green.pool import FairPool
from greenconn.green.single import SingleFlight
from greenconn.publishing.letter import Letter, Stationery
from greenconn.session.session import Session

__all__ = ["Line"]

#: Seconds before a message is sent again, from the second time on; doubled up to the limit.
PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0

#: Outcomes of one message, never of its connection or channel, although some are also ``OSError``.
_OWN: Final = (
    ConnectionBlocked,
    PublishNacked,
    PublishRefused,
    PublishTimeout,
    Unroutable,
    WrongHub,
)


class Line:
    """The way to the broker that all publishers of one connection share.

    Arguments:
        session: of the connection that publishes.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._channel: Any = None
        self._flight = SingleFlight("publish-channel")
        #: One channel, one holder, in the order of arrival: where each message is sent alone.
        self._apart: FairPool[Any] = FairPool(
            self._open,
            _close,
            lambda channel: bool(channel.is_open),
            1,
            lambda: f"channel apart of {session.broker.label}",
        )

    def deliver(self, letter: Letter, deadline: Deadline) -> None:
        """Publish *letter*, again as long as it may help.  May switch.

        Raises:
            OperationalError: see :func:`publish`.
        """
        pause = 0.0
        while True:
            try:
                self.connect(deadline)
                self.ensure_target(letter.stationery, deadline)
                self._send(letter, deadline)
                return
            except _OWN as exc:
                if isinstance(exc, PublishTimeout) and letter.maybe_delivered:
                    exc.maybe_delivered = True
                raise
            except self._session.broker.connection_errors as exc:
                error: BaseException = exc
            if deadline.has_ended:
                raise self._timeout(letter, deadline) from error
            left = deadline.left()
            gevent.sleep(pause if left is None else min(pause, left))
            pause = min(max(2 * pause, PAUSE), LONGEST_PAUSE)

    def deliver_in_order(self, letters: list[Letter], deadline: Deadline) -> dict[int, Exception]:
        """Publish all, pipelined.  May switch.

        Returns:
            The errors of those that were not published, by position.
        """
        failed: dict[int, Exception] = {}
        for position in self._pipeline(letters, deadline, failed):
            # Its answer never came: one by one now, still in order.
            try:
                self.deliver(letters[position], deadline)
            except OperationalError as exc:
                failed[position] = exc
        return failed

    def _pipeline(
        self, letters: list[Letter], deadline: Deadline, failed: dict[int, Exception]
    ) -> list[int]:
        """Send all and collect the answers; positions of those that have none."""
        pending: list[Any] = []
        broker = self._session.broker
        try:
            self.connect(deadline)
            self.ensure_target(letters[0].stationery, deadline)
            channel = self._shared(deadline)
            begin = getattr(channel, "begin_publish", None)
            if begin is None:
                return list(range(len(letters)))
            for letter in letters:
                common, message = letter.stationery, letter.prepared(channel)
                pending.append(
                    begin(
                        message,
                        common.exchange,
                        common.routing_key,
                        common.mandatory,
                        False,
                        deadline,
                    )
                )
                letter.maybe_delivered = True
        except (*_OWN, *broker.connection_errors, *broker.transport.channel_errors):
            pass  # what was sent is waited for; what was not is tried again one by one
        left = []
        for position, confirm in enumerate(pending):
            try:
                confirm.wait(deadline)
            except _OWN as exc:
                failed[position] = exc
            except broker.transport.channel_errors:
                letters[position].is_alone = True
                left.append(position)
            except broker.connection_errors:
                left.append(position)
        return left + list(range(len(pending), len(letters)))

    def connect(self, deadline: Deadline) -> None:
        """See that there is a connection.  May switch.

        Raises:
            OperationalError: every broker refuses the login.
        """
        session = self._session
        if session.is_open:
            return
        try:
            session.link(deadline, reopen=True)
        except Exception as exc:
            if isinstance(exc, _OWN) or not session.is_final(exc):
                raise
            raise OperationalError(f"cannot publish to {session.broker.label}: {exc}") from exc

    def ensure_target(self, stationery: Stationery, deadline: Deadline) -> None:
        target, session = stationery.target, self._session
        try:
            if isinstance(target, str):
                ensure_queue_exists(session, target, deadline)
            elif target.name:
                ensure_declared(session, target, deadline)
        except _OWN:
            raise
        except session.broker.transport.channel_errors as exc:
            raise PublishRefused(f"cannot publish to {stationery}: {exc}") from exc

    def _send(self, letter: Letter, deadline: Deadline) -> None:
        if letter.is_alone:
            self._send_apart(letter, deadline)
            return
        channel = self._shared(deadline)
        try:
            letter.send(channel, deadline)
        except _OWN:
            raise
        except self._session.broker.transport.channel_errors:
            letter.is_alone = True
            self._send_apart(letter, deadline)

    def _send_apart(self, letter: Letter, deadline: Deadline) -> None:
        channel = self._apart.acquire(True, deadline)
        try:
            letter.send(channel, deadline)
        except _OWN:
            raise
        except self._session.broker.transport.channel_errors as exc:
            raise PublishRefused(
                f"{self._session.broker.label} refused a message to {letter.stationery}: {exc}"
            ) from exc
        finally:
            if channel.is_open:
                self._apart.release(channel)
            else:
                self._apart.remove(channel)

    def _shared(self, deadline: Deadline) -> Any:
        """The channel that all share, opened anew if it is not open.  May switch."""
        channel = self._channel
        if channel is None or not channel.is_open:
            channel = self._flight.run("channel", self._open_shared, deadline)
        return channel

    def _open_shared(self) -> Any:
        self._channel = channel = self._open(Deadline(self._session.broker.connect_timeout))
        return channel

    def _open(self, deadline: Deadline) -> Any:
        session = self._session
        channel = session.broker.transport.create_channel(session.link(deadline))
        try:
            channel.confirm_select()
        except BaseException:
            _close(channel)
            raise
        return channel

    def _timeout(self, letter: Letter, deadline: Deadline) -> PublishTimeout:
        fate = "it may have it" if letter.maybe_delivered else "nothing was sent"
        return PublishTimeout(
            f"{self._session.broker.label} did not take a message to {letter.stationery} within "
            f"{deadline.timeout:g} s: {fate}",
            maybe_delivered=letter.maybe_delivered,
        )


def _close(channel: Any) -> None:
    if channel.is_open:
        channel.close()
