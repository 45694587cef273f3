"""One service of AWS at one endpoint: SQS, SNS or STS.

botocore finds the endpoint, writes and signs the requests and reads the responses, which go over
:class:`~greenconn.green.http.HttpClient`.  A client of botocore's would do the HTTP, too, at ten times
the CPU, with locks and sockets that block.

At the level DEBUG botocore writes to its log what it signs and what it reads: session tokens, the keys
of a role, the bodies of messages.  Here it never does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import botocore.session
from botocore.auth import SIGV4_TIMESTAMP, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.parsers import ResponseParserError, create_parser
from botocore.serialize import create_serializer

from greenconn._version import __version__
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.http import HttpClient, HttpResponse
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.threadpool import in_threadpool
from greenconn.transport.SQS.exceptions import (
    EXPIRED,
    LinkLost,
    LoginRefused,
    ServiceBusy,
    as_error,
    is_busy,
    short,
)

if TYPE_CHECKING:
    from botocore.model import ServiceModel

    from greenconn.transport.SQS.account import Login

logger = logging.getLogger("greenconn.transport.SQS")


class Refusal(Exception):
    """The error that a service replied with."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message


#: For what AWS refuses because it is busy; how often is an option.
BUSY: Final = RetryPolicy(first=0.1, longest=5.0)


class Endpoint(NamedTuple):
    """The endpoint of a service.

    Attributes:
        model: the service, as botocore describes it.
        user_agent: the name and version of the program.
    """

    url: str
    region: str
    model: ServiceModel
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
        protocol = endpoint.model.resolved_protocol
        # Parameters are checked where they come from the program; the rest is ours.
        self._serializer = create_serializer(protocol, include_validation=False)
        self._parser = create_parser(protocol)
        self._brackets = (b"{", b"}") if protocol == "json" else (b"<", b">")
        self._url = f"{endpoint.url.rstrip('/')}/"
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
        endpoint = self.endpoint
        operation = endpoint.model.operation_model(action)
        written = self._serializer.serialize_to_request(parameters, operation)
        body = written["body"]
        if not isinstance(body, bytes):
            body = urlencode(body).encode()  # SNS and STS take a form
        request = AWSRequest("POST", self._url, {**written["headers"], "Host": self._host}, body)
        keys = self.login.keys(deadline)
        auth = SigV4Auth(keys.credentials, endpoint.model.signing_name, endpoint.region)
        sign(request, auth)
        reply = self._client.request(
            "POST",
            self._path,
            headers={**request.headers, "User-Agent": endpoint.user_agent},
            body=body,
            deadline=deadline,
            # What is done twice so is sent twice at worst, as SQS itself may do.
            may_repeat=True,
        )
        return self.read(reply, operation.output_shape)

    def read(self, reply: HttpResponse, shape: Any) -> dict[str, Any]:
        """Return the content of a response.

        Arguments:
            shape: what it must be, as botocore describes it.

        Raises:
            Refusal: the service replied with an error.
        """
        body = reply.body.strip()
        # botocore reads what is no JSON at all as an empty response.
        if body and (body[:1], body[-1:]) != self._brackets:
            raise _unreadable(reply)
        response = {
            "status_code": reply.status,
            "headers": reply.headers,
            "body": Unlogged(reply.body),
        }
        try:
            parsed: dict[str, Any] = self._parser.parse(response, shape)
            if reply.status < 300:
                return parsed
            error = parsed["Error"]
            code = error.get("QueryErrorCode") or error["Code"]
            message = error.get("Message") or ""
        except (ResponseParserError, AttributeError, KeyError, TypeError, ValueError):
            raise _unreadable(reply) from None
        if not code or code.isdecimal():  # of something on the way, such as "400 Bad Request"
            raise _unreadable(reply)
        raise Refusal(reply.status, code, message)


class Unlogged(bytes):
    """Bytes whose content botocore cannot write to its log."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def sign(request: AWSRequest, auth: SigV4Auth) -> None:
    """Sign a request as ``auth.add_auth`` does, which logs the session token."""
    stamp = datetime.now(timezone.utc).strftime(SIGV4_TIMESTAMP)
    request.context["timestamp"] = stamp
    request.headers["X-Amz-Date"] = stamp
    if auth.credentials.token:
        request.headers["X-Amz-Security-Token"] = auth.credentials.token
    text = auth.string_to_sign(request, auth.canonical_request(request))
    names = auth.signed_headers(auth.headers_to_sign(request))
    request.headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={names}, "
        f"Signature={auth.signature(text, request)}"
    )


def _unreadable(reply: HttpResponse) -> Refusal:
    # The page of a proxy, or half of a response: worth a retry.
    text = reply.body[:100].decode(errors="replace")
    return Refusal(max(reply.status, 500), "ServiceUnavailable", f"not a response: {text!r}")


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

    def ask() -> tuple[str, str, ServiceModel]:
        session = botocore.session.Session()
        named = region or session.get_config_variable("region") or default_region
        if url is not None:
            return url, named, session.get_service_model(service)
        client = session.create_client(
            service,
            region_name=named,
            use_ssl=is_secure,
            config=Config(**config),
            # Any will do: it signs nothing, and must not go and look for credentials.
            aws_access_key_id="-",
            aws_secret_access_key="-",
        )
        meta = client.meta
        return meta.endpoint_url, meta.region_name, meta.service_model

    try:
        found, where, model = in_threadpool(ask)
    except (BotoCoreError, TypeError) as exc:
        raise ValueError(f"no endpoint of {service}: {exc}") from None
    extra = config.get("user_agent_extra")
    agent = f"greenconn/{__version__}"
    return Endpoint(found, where, model, f"{agent} {extra}" if extra else agent)
