"""Accounts: users of AWS, each with credentials, a region and the services there.

A transport has one account for its URL and one for each set of keys that its options name.  Accounts
outlive links, so that a new link finds credentials and endpoints ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final
from urllib.parse import urlsplit

from greenconn.exceptions import AccessRefused, PreconditionFailed
from greenconn.green import fork
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.http import HttpClient
from greenconn.green.single_flight import SingleFlight
from greenconn.transport.SQS.credentials import (
    EARLY,
    LATE,
    DefaultLogin,
    Keys,
    Login,
    RefreshableLogin,
    StaticLogin,
)
from greenconn.transport.SQS.exceptions import LoginRefused, ServiceBusy
from greenconn.transport.SQS.options import SQSOptions
from greenconn.transport.SQS.queues import NewQueues
from greenconn.transport.SQS.service import Endpoint, Service, find_endpoint
from greenconn.transport.virtual.declaration import Declaration

__all__ = ["Account", "Accounts", "HttpClients"]


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
        end = datetime.fromisoformat(own["Expiration"].replace("Z", "+00:00"))
        end -= timedelta(seconds=self._buffer)

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
