"""Accounts: users of AWS, each with credentials, which end and are refreshed, and services in a region.

A transport has one account for its URL and one for each set of keys that its options name.  Accounts
outlive links, so that a new link finds credentials and endpoints ready.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.session
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError

from greenconn.exceptions import AccessRefused, PreconditionFailed
from greenconn.green import fork
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.http import HttpClient
from greenconn.green.single_flight import SingleFlight
from greenconn.green.supervisor import spawn
from greenconn.green.threadpool import in_threadpool
from greenconn.transport.SQS.exceptions import LinkLost, LoginRefused, ServiceBusy
from greenconn.transport.SQS.options import SQSOptions
from greenconn.transport.SQS.queues import NewQueues
from greenconn.transport.SQS.service import Endpoint, Service, find_endpoint
from greenconn.transport.virtual.declaration import Declaration

logger = logging.getLogger("greenconn.transport.SQS")

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
        fork.register(self)

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
