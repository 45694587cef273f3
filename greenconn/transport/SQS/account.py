"""Accounts: users of AWS, each with a region and the services there.

A transport has one account for its URL and one for each set of keys that its options name; they
outlive links, so that a new one finds credentials and endpoints ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from greenconn.green import fork
from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient
from greenconn.green.single_flight import SingleFlight
from greenconn.transport.SQS.endpoints import find_endpoint
from greenconn.transport.SQS.login import FoundLogin, GivenLogin, Keys, Login
from greenconn.transport.SQS.options import SQSOptions
from greenconn.transport.SQS.role import RoleLogin, client_of
from greenconn.transport.SQS.service import Endpoint, Service
from greenconn.transport.virtual.declaration import Declaration

__all__ = ["Account", "Accounts", "HttpClients"]

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
        """In the child of a fork: the connections are the parent's."""
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
        """In the child of a fork: nobody here asks."""
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
    """

    def __init__(self, client: Any, options: SQSOptions) -> None:
        self._options = options
        self._client = client
        self._url = _endpoint_url(client, options)
        self._is_secure = options.is_secure is not False
        self._accounts: dict[tuple[str | None, str | None], Account] = {}
        self.declared: dict[str, Declaration] = {}
        self.main = self.of({})

    def forget(self) -> None:
        """In the child of a fork: nobody here asks."""
        for account in self._accounts.values():
            account.forget()

    def of(self, settings: Mapping[str, Any]) -> Account:
        """The account that a predefined queue or exchange names; what it leaves out is the URL's."""
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
        login: Login = FoundLogin() if keys is None else GivenLogin(keys)
        if options.sts_role_arn is None:
            return login
        return RoleLogin(
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
