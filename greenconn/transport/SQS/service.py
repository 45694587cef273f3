"""One service of AWS at one endpoint: SQS, SNS or STS.

botocore says where it is; the bytes go over :class:`~greenconn.green.web.Web`.  A client of botocore's
would do all that and the HTTP, at ten times the CPU, with locks and sockets that block the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from gevent import sleep

from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.web import Web
from greenconn.transport.SQS.exceptions import (
    EXPIRED,
    LinkLost,
    LoginRefused,
    ServiceBusy,
    as_error,
    is_busy,
    short,
)
from greenconn.transport.SQS.login import Login
from greenconn.transport.SQS.protocol import PROTOCOLS, Refusal
from greenconn.transport.SQS.signing import signed
from greenconn.wire.backoff import Backoff

__all__ = ["Endpoint", "Service"]

logger = logging.getLogger("greenconn.transport.SQS")

#: Seconds of the first and of the longest pause between two tries.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0


class Endpoint(NamedTuple):
    """Where a service is.

    Attributes:
        service: ``sqs``, ``sns`` or ``sts``.
        user_agent: what it is told of the program.
    """

    service: str
    url: str
    region: str
    user_agent: str


class Service:
    """Requests to one service, signed for one user.

    Arguments:
        endpoint: where it is.
        web: the connections to it.
        login: who signs.
        timeout: seconds for a request, all its tries included; None waits.
        try_timeout: seconds for one try; None: half of that.
        retries: tries after the first one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        web: Web,
        login: Login,
        *,
        timeout: float | None,
        try_timeout: float | None,
        retries: int,
    ) -> None:
        self.endpoint = endpoint
        self.login = login
        self._web = web
        self._timeout = timeout
        self._try_timeout = try_timeout or (timeout and timeout / 2)
        self._retries = retries
        self._protocol = PROTOCOLS[endpoint.service]
        parts = urlsplit(endpoint.url)
        self._host = parts.netloc
        self._path = f"{parts.path.rstrip('/')}/"

    @property
    def where(self) -> str:
        """Host and port."""
        return self._web.where

    def call(
        self,
        action: str,
        what: str = "",
        *,
        waiting: float = 0,
        deadline: Deadline | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Have something done, again while the service says that it is busy.  May switch.

        Arguments:
            action: as AWS calls it.
            what: with what, for messages.
            waiting: seconds that the service itself may wait.

        Raises:
            DoesNotExistQueueException, AccessDeniedQueueException, InvalidQueueException,
            LoginRefused: refused, for that reason.
            ServiceBusy: it was busy for too long.
            LinkLost: it does not answer.
        """
        deadline = (deadline or NEVER).within(_plus(self._timeout, waiting))
        said = f"{action} {what}".rstrip()
        pauses = Backoff(FIRST_PAUSE, factor=2.0, max=LONGEST_PAUSE, jitter=0.5)
        may_renew = self.login.can_renew
        while True:
            try:
                one = deadline.within(_plus(self._try_timeout, waiting))
                return self._once(action, parameters, one)
            except Refusal as refusal:
                if may_renew and short(refusal.code) in EXPIRED:
                    may_renew = False
                    self._renew(deadline)
                    continue
                if not is_busy(refusal.status, refusal.code):
                    raise as_error(self.where, said, refusal.code, refusal.message) from None
                error: Exception = ServiceBusy(
                    f"{self.where}: {said}: {short(refusal.code)} ({refusal.status}): "
                    f"{refusal.message[:200]}"
                )
            except OSError as exc:
                error = LinkLost(f"{said}: {exc}")
                error.__cause__ = exc
            pause = next(pauses)
            left = deadline.left()
            if pauses.attempts > self._retries or (left is not None and left <= pause):
                raise error
            logger.debug("%s, again in %.1f s", error, pause)
            sleep(pause)

    def _renew(self, deadline: Deadline) -> None:
        try:
            self.login.renew(deadline)
        except TimeoutError as exc:
            raise LoginRefused(f"{self.where}: new credentials: {exc}") from exc

    def _once(
        self, action: str, parameters: Mapping[str, Any], deadline: Deadline
    ) -> dict[str, Any]:
        headers, body = self._protocol.request(action, parameters)
        headers["Host"] = self._host
        endpoint = self.endpoint
        headers = signed(
            self.login.keys(deadline).credentials,
            service=endpoint.service,
            region=endpoint.region,
            path=self._path,
            headers=headers,
            body=body,
            now=datetime.now(timezone.utc),
        )
        headers["User-Agent"] = endpoint.user_agent
        reply = self._web.request(
            "POST",
            self._path,
            headers=headers,
            body=body,
            deadline=deadline,
            # What is done twice so is sent twice at worst, as SQS itself may do.
            may_repeat=True,
        )
        return self._protocol.answer(action, reply)


def _plus(timeout: float | None, waiting: float) -> float | None:
    return None if timeout is None else timeout + waiting
