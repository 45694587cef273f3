"""One service of AWS at one endpoint: SQS, SNS or STS.

botocore finds the endpoint; the requests go over :class:`~greenconn.green.http.HttpClient`.  A client
of botocore's would do all that and the HTTP, at ten times the CPU, with locks and sockets that block.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from greenconn._version import __version__
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.http import HttpClient
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.threadpool import in_threadpool
from greenconn.transport.SQS.credentials import Login
from greenconn.transport.SQS.exceptions import (
    EXPIRED,
    LinkLost,
    LoginRefused,
    ServiceBusy,
    as_error,
    is_busy,
    short,
)
from greenconn.transport.SQS.protocol import PROTOCOLS, Refusal, signed

__all__ = ["BUSY", "Endpoint", "Service", "find_endpoint"]

logger = logging.getLogger("greenconn.transport.SQS")


#: For what AWS refuses because it is busy; how often is an option.
BUSY: Final = RetryPolicy(first=0.1, longest=5.0)


class Endpoint(NamedTuple):
    """The endpoint of a service.

    Attributes:
        service: ``sqs``, ``sns`` or ``sts``.
        user_agent: what it learns of the program.
    """

    service: str
    url: str
    region: str
    user_agent: str


class Service:
    """Requests to one service, signed for one user.

    Arguments:
        endpoint: where it is.
        client: the connections to it.
        login: who signs.
        timeout: seconds for a request, all its tries included; None waits.
        try_timeout: seconds for one try; None: half of that.
        retries: tries after the first one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        client: HttpClient,
        login: Login,
        *,
        timeout: float | None,
        try_timeout: float | None,
        retries: int,
    ) -> None:
        self.endpoint = endpoint
        self.login = login
        self._client = client
        self._timeout = timeout
        self._try_timeout = try_timeout or (timeout and timeout / 2)
        self._policy = BUSY.replace(tries=retries + 1)
        self._protocol = PROTOCOLS[endpoint.service]
        parts = urlsplit(endpoint.url)
        self._host = parts.netloc
        self._path = f"{parts.path.rstrip('/')}/"

    @property
    def where(self) -> str:
        """Host and port."""
        return self._client.where

    def deadline(self, waiting: float = 0) -> Deadline:
        """Return the deadline of a call that begins now, in which the service may wait."""
        return Deadline(_plus(self._timeout, waiting))

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
            LinkLost: the service does not respond.
        """
        deadline = (deadline or NEVER).within(_plus(self._timeout, waiting))
        said = f"{action} {what}".rstrip()
        try:
            for attempt in attempts(self._policy, deadline, _is_passing):
                with attempt:
                    return self._tried(action, parameters, deadline, waiting)
                logger.debug(
                    "%s: %s: %s, again in %.1f s",
                    self.where,
                    said,
                    attempt.error,
                    attempt.interval,
                    extra={"connection": self.where},
                )
        except Refusal as refusal:
            raise self._refused(said, refusal) from None
        except OSError as exc:
            raise LinkLost(f"{said}: {exc}") from exc
        raise AssertionError("unreachable")

    def _tried(
        self, action: str, parameters: Mapping[str, Any], deadline: Deadline, waiting: float
    ) -> dict[str, Any]:
        """Send it, once more with new credentials where they have ended."""
        timeout = _plus(self._try_timeout, waiting)
        try:
            return self._once(action, parameters, deadline.within(timeout))
        except Refusal as refusal:
            if not self.login.can_renew or short(refusal.code) not in EXPIRED:
                raise
        self._renew(deadline)
        return self._once(action, parameters, deadline.within(timeout))

    def _refused(self, said: str, refusal: Refusal) -> Exception:
        if not is_busy(refusal.status, refusal.code):
            return as_error(self.where, said, refusal.code, refusal.message)
        return ServiceBusy(
            f"{self.where}: {said}: {short(refusal.code)} ({refusal.status}): {refusal.message[:200]}"
        )

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
        reply = self._client.request(
            "POST",
            self._path,
            headers=headers,
            body=body,
            deadline=deadline,
            # What is done twice so is sent twice at worst, as SQS itself may do.
            may_repeat=True,
        )
        return self._protocol.parse_response(action, reply)


def _is_passing(exc: Exception) -> bool:
    if isinstance(exc, Refusal):
        return is_busy(exc.status, exc.code)
    return isinstance(exc, OSError)


def _plus(timeout: float | None, waiting: float) -> float | None:
    return None if timeout is None else timeout + waiting


def find_endpoint(
    service: str,
    *,
    region: str | None,
    url: str | None,
    is_secure: bool,
    config: Mapping[str, Any],
    default_region: str,
) -> Endpoint:
    """Ask botocore.  May switch: it reads large files, in a thread.

    Arguments:
        region: None: that of the environment or of AWS' files.
        url: None: what botocore has for the region, unless the environment or AWS' files say other.

    Raises:
        ValueError: *config* or *region* cannot be.
    """

    def ask() -> tuple[str, str]:
        session = botocore.session.Session()
        named = region or session.get_config_variable("region") or default_region
        if url is not None:
            return url, named
        client = session.create_client(
            service,
            region_name=named,
            use_ssl=is_secure,
            config=Config(**config),
            # Any will do: it signs nothing, and must not go and look for credentials.
            aws_access_key_id="-",
            aws_secret_access_key="-",
        )
        return client.meta.endpoint_url, client.meta.region_name

    try:
        found, where = in_threadpool(ask)
    except (BotoCoreError, TypeError) as exc:
        raise ValueError(f"no endpoint of {service}: {exc}") from None
    extra = config.get("user_agent_extra")
    agent = f"greenconn/{__version__}"
    return Endpoint(service, found, where, f"{agent} {extra}" if extra else agent)
