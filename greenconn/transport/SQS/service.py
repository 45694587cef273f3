"""One service of AWS at one endpoint: SQS, SNS or STS.

botocore finds the endpoint, writes and signs the requests and reads the responses, which go over
:class:`~greenconn.green.http.HttpClient`.  A client of botocore's would do the HTTP, too, at ten times
the CPU, with locks and sockets that block.

At the level DEBUG botocore writes to its log what it signs and what it reads: session tokens, the keys
of a role, the bodies of messages.  Here it never does.

A transport has one :class:`Account` for its URL and one for each set of keys that its options name.
Accounts outlive links, so that a new link finds credentials and endpoints ready.

Errors are amqp's classes, under kombu's names where it has one.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import botocore.session
from botocore.auth import SIGV4_TIMESTAMP, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError
from botocore.parsers import ResponseParserError, create_parser
from botocore.serialize import create_serializer
from gevent import sleep

from greenconn._version import __version__
from greenconn.broker.queues import Declaration
from greenconn.exceptions import (
    AccessRefused,
    KombuError,
    NotAllowed,
    NotFound,
    OperationalError,
    PreconditionFailed,
    RecoverableConnectionError,
    ResourceLocked,
)
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.http import HttpClient, HttpResponse
from greenconn.green.hub import forget_at_fork
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.slot import SingleFlight
from greenconn.green.supervisor import spawn
from greenconn.green.threadpool import in_threadpool

if TYPE_CHECKING:
    from botocore.model import ServiceModel

    from greenconn.transport.SQS import SQSOptions


logger = logging.getLogger("greenconn.transport.SQS")


class UndefinedQueueException(NotAllowed, KombuError):  # type: ignore[misc]
    """Predefined queues are in use, and this is none of them."""


class UndefinedExchangeException(NotAllowed, KombuError):  # type: ignore[misc]
    """Predefined exchanges are in use, and this is none of them."""


class InvalidQueueException(PreconditionFailed, KombuError):  # type: ignore[misc]
    """AWS takes a name, an attribute or a message not as it is."""


class AccessDeniedQueueException(AccessRefused, KombuError):  # type: ignore[misc]
    """The account may not do this."""


class DoesNotExistQueueException(NotFound, KombuError):  # type: ignore[misc]
    """There is no such queue or topic."""


class UnableToSubscribeQueueToTopicException(InvalidQueueException):
    """A topic does not take a queue as its subscriber."""


class UnableToUnsubscribeQueueFromTopicException(InvalidQueueException):
    """A topic does not let a subscriber go."""


class LoginRefused(AccessRefused, KombuError):  # type: ignore[misc]
    """There are no credentials, or AWS does not take them."""


class QueueDeletedRecently(ResourceLocked, KombuError):  # type: ignore[misc]
    """A queue of this name was deleted a moment ago."""


class LinkLost(RecoverableConnectionError, KombuError):  # type: ignore[misc]
    """AWS cannot be reached, or does not respond."""


class ServiceBusy(OperationalError):
    """AWS throttles us, or fails to serve, and went on so for as long as we tried."""


#: What ends one request, and neither the link nor other requests.
REFUSED: Final = (
    AccessDeniedQueueException,
    DoesNotExistQueueException,
    InvalidQueueException,
    LoginRefused,
    QueueDeletedRecently,
    ServiceBusy,
    UndefinedExchangeException,
    UndefinedQueueException,
)

#: The end of an error code -> its class, and the remedy.
_CLASSES: Final[dict[str, tuple[type[Exception], str]]] = {
    "NonExistentQueue": (DoesNotExistQueueException, ""),
    "QueueDoesNotExist": (DoesNotExistQueueException, ""),
    "NotFound": (DoesNotExistQueueException, ""),
    "NotFoundException": (DoesNotExistQueueException, ""),
    "AccessDenied": (
        AccessDeniedQueueException,
        "the policy of the account or queue must allow it",
    ),
    "AccessDeniedException": (
        AccessDeniedQueueException,
        "the policy of the account must allow it",
    ),
    "AuthorizationError": (AccessDeniedQueueException, "the policy of the account must allow it"),
    "KmsAccessDenied": (AccessDeniedQueueException, "the key of the queue must be usable"),
    "ExpiredToken": (LoginRefused, "the temporary credentials have expired"),
    "ExpiredTokenException": (LoginRefused, "the temporary credentials have expired"),
    "InvalidClientTokenId": (LoginRefused, "the access key or session token is not valid"),
    "UnrecognizedClientException": (LoginRefused, "the access key is unknown"),
    "InvalidSecurity": (LoginRefused, "the signature does not match the request"),
    "InvalidAccessKeyId": (LoginRefused, "the access key is unknown"),
    "InvalidSignatureException": (LoginRefused, "the secret key is wrong, or the clock"),
    "SignatureDoesNotMatch": (LoginRefused, "the secret key is wrong, or the clock"),
    "MissingAuthenticationToken": (LoginRefused, "no credentials were sent"),
    "RequestExpired": (LoginRefused, "the clock is wrong"),
    "QueueDeletedRecently": (QueueDeletedRecently, "wait 60 s before it is created again"),
}

#: Ends of error codes that mean: later, perhaps.
_BUSY: Final = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "KmsThrottled",
        "OverLimit",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "ServiceUnavailable",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)

#: Error codes after which new credentials may help.
EXPIRED: Final = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"}
)

#: Characters of a message of AWS that are shown: a wrong signature comes with all that was signed.
_SHOWN: Final = 300


def is_busy(status: int, code: str) -> bool:
    """Return whether the same request may succeed later."""
    return status >= 500 or status == 429 or short(code) in _BUSY


def short(code: str) -> str:
    """Return an error code without its namespace."""
    return code.rpartition(".")[2].rpartition("#")[2]


def as_error(where: str, action: str, code: str, message: str) -> Exception:
    """Return the exception for an error reply.

    Arguments:
        where: host and port.
        action: what was asked for, with the name of the queue where there is one.
    """
    said = message.partition("\n")[0][:_SHOWN] or "no reason given"
    cls, remedy = _CLASSES.get(short(code), (InvalidQueueException, ""))
    if code.endswith("TooLong") or "must be shorter than" in said:
        remedy = "the limit of the queue is below max_message_size: split it, or raise the limit"
    text = f"{where}: {action}: {said} ({short(code)})"
    return cls(f"{text}; {remedy}" if remedy else text)


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


__all__ = [
    "EXPIRED",
    "REFUSED",
    "AccessDeniedQueueException",
    "DoesNotExistQueueException",
    "InvalidQueueException",
    "LinkLost",
    "LoginRefused",
    "ServiceBusy",
    "UnableToSubscribeQueueToTopicException",
    "UnableToUnsubscribeQueueFromTopicException",
    "UndefinedExchangeException",
    "UndefinedQueueException",
    "as_error",
    "is_busy",
    "short",
]


#: Seconds in which SQS may still say of a new queue that there is none (CreateQueue: "wait at least one
#: second"), and between two requests until then.
SETTLING: Final = 3.0
SETTLING_PAUSE: Final = 0.25


class NewQueues(dict[str, float]):
    """The queues that were made here, with the times; shared by all links of a transport."""

    def add(self, name: str) -> None:
        """Note that a queue was made now, and forget those known everywhere.  Never switches."""
        now = monotonic()
        for each, made_at in list(self.items()):  # at once: other threads note theirs
            if now - made_at > SETTLING:
                self.pop(each, None)
        self[name] = now

    def call(
        self, name: str, request: Callable[[Deadline], dict[str, Any]], deadline: Deadline
    ) -> dict[str, Any]:
        """Make a request about a queue, again while SQS may not know everywhere that it is there.

        May switch.

        Arguments:
            request: makes it once, until the deadline that it is given.
            deadline: of all requests together.

        Raises:
            DoesNotExistQueueException: there is no such queue, and it was not made a moment ago.
            ServiceBusy: it was made a moment ago, and was not known before the deadline.
        """
        while True:
            try:
                return request(deadline)
            except DoesNotExistQueueException as exc:
                made_at = self.get(name)
                if made_at is None or monotonic() - made_at > SETTLING:
                    raise
                left = deadline.left()
                if left is not None and left <= SETTLING_PAUSE:
                    raise ServiceBusy(
                        f"queue {name!r} was made a moment ago, and SQS did not know it everywhere "
                        f"within {deadline.timeout:g} s: try again, or raise reply_timeout"
                    ) from exc
            sleep(SETTLING_PAUSE)


#: Seconds before their end at which new credentials are asked for, and at which the old are not used
#: ones any more (botocore's).
EARLY: Final = 15 * 60.0
LATE: Final = 10 * 60.0
#: Seconds between two attempts while the old ones are still good.
PAUSE: Final = 60.0


def _never(seconds: float) -> bool:
    return False


class Keys:
    """An access key with its secret, which ``repr()`` does not show.

    Arguments:
        ends_within: whether they end within so many seconds.  Never waits.
    """

    def __init__(
        self,
        access_key: str,
        secret_key: str,
        token: str | None = None,
        ends_within: Callable[[float], bool] = _never,
    ) -> None:
        self.credentials = Credentials(access_key, secret_key, token)
        self.ends_within = ends_within

    def __repr__(self) -> str:
        return f"<Keys {self.credentials.access_key[:4]}...>"


class Login(ABC):
    """The credentials of one user."""

    #: Whether :meth:`renew` may bring others.
    can_renew = False

    @abstractmethod
    def keys(self, deadline: Deadline) -> Keys:
        """Return credentials that are good now.  May switch.

        Raises:
            LoginRefused: there are none.
            TimeoutError: they did not come in time.
        """

    @abstractmethod
    def renew(self, deadline: Deadline) -> Keys:
        """Ask for new credentials, where others can be had.  May switch; raises as :meth:`keys`."""

    def forget(self) -> None:  # noqa: B027
        """Forget what is under way in the child of a fork."""


class StaticLogin(Login):
    """Credentials of the URL or the options."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def keys(self, deadline: Deadline) -> Keys:
        """Return the credentials, which never change."""
        return self._keys

    renew = keys


class RefreshableLogin(Login):
    """Credentials that end, and are asked for once for everybody who needs them.

    Those who sign shortly before their end go on with what there is while new ones are asked for.

    Arguments:
        early, late: seconds before their end at which that begins, and at which one waits for it.
    """

    can_renew = True

    def __init__(self, early: float = EARLY, late: float = LATE) -> None:
        self._early = early
        self._late = late
        self._keys: Keys | None = None
        self._flights = SingleFlight("sqs-login")
        self._next_try = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._keys!r}>"

    def forget(self) -> None:
        """Forget what is under way in the child of a fork."""
        self._flights.forget()

    def keys(self, deadline: Deadline) -> Keys:
        """See :class:`Login`."""
        keys = self._keys
        if keys is None or keys.ends_within(0.0):
            return self.renew(deadline)
        if keys.ends_within(self._early) and monotonic() >= self._next_try:
            self._next_try = monotonic() + PAUSE
            if keys.ends_within(self._late):
                return self.renew(deadline)
            spawn("sqs-login", self._try_to_renew)
        return keys

    def renew(self, deadline: Deadline) -> Keys:
        """See :class:`Login`."""
        return self._flights.run("keys", self._renewed, deadline)

    def _renewed(self) -> Keys:
        keys = self._keys = self._fetch()
        return keys

    def _try_to_renew(self) -> None:
        try:
            self.renew(Deadline(PAUSE))
        except (LoginRefused, LinkLost, TimeoutError) as exc:
            logger.warning("credentials for AWS could not be renewed yet: %s", exc)

    @abstractmethod
    def _fetch(self) -> Keys:
        """Return new ones.  May switch.

        Raises:
            LoginRefused: there are none.
        """


class DefaultLogin(RefreshableLogin):
    """Credentials that botocore finds: in the environment, in files, of the container or the machine.

    It does that over sockets and locks of its own, so in a thread.
    """

    def _fetch(self) -> Keys:
        try:
            return in_threadpool(_find)
        except LoginRefused:
            raise
        except Exception as exc:  # a process of the program that gives them may write anything
            said = str(exc).partition("\n")[0][:300]
            kind = "" if isinstance(exc, BotoCoreError) else f"{type(exc).__name__}: "
            raise LoginRefused(f"no credentials for AWS: {kind}{said}") from None


def _find() -> Keys:
    """Return new credentials.  Blocks; starts anew each time, since environment and files may change."""
    found = botocore.session.Session().get_credentials()
    if found is None:
        raise LoginRefused(
            "no credentials for AWS: pass them in the URL (sqs://key:secret@), in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or in AWS' files"
        )
    frozen = found.get_frozen_credentials()
    ends_within = getattr(found, "refresh_needed", _never)
    return Keys(frozen.access_key, frozen.secret_key, frozen.token, ends_within)


#: Seconds for STS to answer.
TIMEOUT: Final = 30.0
RETRIES: Final = 4


def client_of(url: str, ssl: Any, limit: int) -> HttpClient:
    """Return what leads to the host of *url*.  Never switches.

    Arguments:
        ssl: for HTTPS; nothing verifies with what the system trusts.
    """
    parts = urlsplit(url)
    is_secure = parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    tls = (ssl or True) if is_secure else None
    return HttpClient(parts.hostname or "", port, ssl=tls, limit=limit)


class AssumedRoleLogin(RefreshableLogin):
    """A role that another user takes on.

    Arguments:
        base: that user.
        role: its ARN.
        validity: seconds for which its credentials are asked.
        buffer: seconds by which these end earlier for us.
        region, default_region: whose STS is asked.
    """

    def __init__(
        self,
        base: Login,
        role: str,
        *,
        validity: int,
        buffer: float,
        region: str | None,
        default_region: str,
    ) -> None:
        # Of a short life the larger part is used.
        super().__init__(early=min(EARLY, validity / 4), late=min(LATE, validity / 8))
        self._base = base
        self._role = role
        self._validity = validity
        self._buffer = buffer
        self._region = region
        self._default_region = default_region

    def forget(self) -> None:
        """Forget what is under way in the child of a fork."""
        super().forget()
        self._base.forget()

    def _fetch(self) -> Keys:
        endpoint = find_endpoint(
            "sts",
            region=self._region,
            url=None,
            is_secure=True,
            config={},
            default_region=self._default_region,
        )
        client = client_of(endpoint.url, None, 1)
        service = Service(
            endpoint, client, self._base, timeout=TIMEOUT, try_timeout=None, retries=RETRIES
        )
        try:
            own = service.call(
                "AssumeRole",
                self._role,
                deadline=NEVER,
                RoleArn=self._role,
                RoleSessionName="greenconn",
                DurationSeconds=self._validity,
            )["Credentials"]
        except (AccessRefused, PreconditionFailed, ServiceBusy) as exc:
            raise LoginRefused(f"the role cannot be assumed: {exc}") from exc
        finally:
            client.close()
        end: datetime = own["Expiration"] - timedelta(seconds=self._buffer)

        def ends_within(seconds: float) -> bool:
            return (end - datetime.now(timezone.utc)).total_seconds() < seconds

        return Keys(own["AccessKeyId"], own["SecretAccessKey"], own["SessionToken"], ends_within)


#: Where botocore finds no region (kombu's).
DEFAULT_REGION: Final = "us-east-1"
#: Connections beside those that poll.
OTHER_CONNECTIONS: Final = 20


class HttpClients:
    """The connections of one link, by host."""

    def __init__(self, options: SQSOptions, ssl: Any) -> None:
        self._limit = options.poll_connections + OTHER_CONNECTIONS
        self._ssl = ssl
        self._clients: dict[str, HttpClient] = {}
        # Before the link does, which then finds nothing to close.
        forget_at_fork(self)

    def of(self, url: str) -> HttpClient:
        """Return the HTTP client for the host of *url*.  Never switches."""
        parts = urlsplit(url)
        key = f"{parts.scheme}://{parts.netloc}"
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = client_of(url, self._ssl, self._limit)
        return client

    def forget(self) -> None:
        """Forget the connections in the child of a fork, as they are the parent's."""
        for client in self._clients.values():
            client.forget()

    def close(self) -> None:
        """End all requests.  Never switches."""
        for client in self._clients.values():
            client.close()


class Account:
    """One user in one region.

    Arguments:
        region: None: the one that botocore finds.
        url: where the services answer; None: where botocore says.
    """

    def __init__(
        self,
        login: Login,
        options: SQSOptions,
        *,
        region: str | None,
        url: str | None,
        secure: bool,
    ) -> None:
        self.login = login
        self._options = options
        self._region = region
        self._url = url
        self._is_secure = secure
        self._flights = SingleFlight("sqs-endpoint")
        self._endpoints: dict[str, Endpoint] = {}

    def forget(self) -> None:
        """Forget what is under way in the child of a fork."""
        self._flights.forget()
        self.login.forget()

    def service(self, name: str, clients: HttpClients, deadline: Deadline) -> Service:
        """Return ``sqs`` or ``sns``, found when it is first asked for.  May switch then.

        Raises:
            ValueError: the region or ``client_config`` cannot be.
            TimeoutError: it was not found in time.
        """
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            endpoint = self._flights.run(name, lambda: self._find(name), deadline)
        options = self._options
        config = options.client_config or {}
        timeout = options.reply_timeout
        return Service(
            endpoint,
            clients.of(endpoint.url),
            self.login,
            # Before the one who asked gives up, and the link with him.
            timeout=timeout and timeout * 0.9,
            try_timeout=config.get("read_timeout"),
            retries=options.retries,
        )

    def _find(self, name: str) -> Endpoint:
        found = self._endpoints[name] = find_endpoint(
            name,
            region=self._region,
            url=self._url,
            is_secure=self._is_secure,
            config=self._options.client_config or {},
            default_region=DEFAULT_REGION,
        )
        return found


class Accounts:
    """The accounts of one transport.

    Arguments:
        client: has host, port, user and password.

    Attributes:
        declared: how queues were declared, by name.
        new: the queues that were made a moment ago.
    """

    def __init__(self, client: Any, options: SQSOptions) -> None:
        self._options = options
        self._client = client
        self._url = _endpoint_url(client, options)
        self._is_secure = options.is_secure is not False
        self._accounts: dict[tuple[str | None, str | None], Account] = {}
        self.declared: dict[str, Declaration] = {}
        self.new = NewQueues()
        self.main = self.of({})

    def forget(self) -> None:
        """Forget what is under way in the child of a fork."""
        for account in self._accounts.values():
            account.forget()

    def of(self, settings: Mapping[str, Any]) -> Account:
        """Return the account of a predefined queue or exchange; defaults are those of the URL."""
        region = settings.get("region") or self._options.region
        key = (settings.get("access_key_id"), region)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(
                self._login(settings, region),
                self._options,
                region=region,
                url=self._url,
                secure=self._is_secure,
            )
        return account

    def _login(self, settings: Mapping[str, Any], region: str | None) -> Login:
        keys, options = self._keys(settings), self._options
        login: Login = DefaultLogin() if keys is None else StaticLogin(keys)
        if options.sts_role_arn is None:
            return login
        return AssumedRoleLogin(
            login,
            options.sts_role_arn,
            validity=options.sts_token_timeout,
            buffer=options.sts_token_buffer_time,
            region=region,
            default_region=DEFAULT_REGION,
        )

    def _keys(self, settings: Mapping[str, Any]) -> Keys | None:
        access_key = settings.get("access_key_id")
        if access_key:
            return Keys(
                access_key, settings.get("secret_access_key") or "", settings.get("session_token")
            )
        client = self._client
        password = client.password() if callable(client.password) else client.password
        if client.userid and password:
            return Keys(client.userid, password, self._options.session_token)
        if client.userid or password:
            raise ValueError(
                "the URL of SQS must have both an access key and a secret key, or neither: "
                "sqs://key:secret@, percent-encoded"
            )
        return None


def _endpoint_url(client: Any, options: SQSOptions) -> str | None:
    """Return the URL of the services, if the options or the URL name one."""
    if options.endpoint_url:
        return options.endpoint_url
    host = client.hostname
    if not host:
        return None
    is_secure = bool(client.ssl) if options.is_secure is None else options.is_secure
    port = client.port or options.port
    shown = f"[{host}]" if ":" in host else host
    return f"http{'s' if is_secure else ''}://{shown}{f':{port}' if port else ''}"
