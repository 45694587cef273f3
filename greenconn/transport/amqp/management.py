"""Client of RabbitMQ's management API, with the method names of pyrabbit (kombu's manager).

The API is HTTP, so the broker needs its plugin ``rabbitmq_management``; the AMQP connection is not
used and need not be open.  Any greenlet may call any method at any time.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote, unquote

from greenconn.exceptions import ManagementError, OperationalError
from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient, HttpResponse
from greenconn.transport import base
from greenconn.url import mask_secrets

if TYPE_CHECKING:
    from greenconn.transport.amqp import Transport

PORT: Final = 15672
TLS_PORT: Final = 15671
#: A value that JSON can hold: the broker's responses are returned as they are.
Json: TypeAlias = Any
#: The most bytes of a response: a list of 100,000 queues has 100 MiB.
LIMIT: Final = 256 * 1024 * 1024


class _NoManagement(OperationalError):
    """The management API does not answer.  Its text has the remedy."""

    has_remedy = True


class Management(base.Management):
    """RabbitMQ's management API.

    Arguments:
        transport: of the connection whose broker is meant.
        hostname, port: of the API; None is the transport option ``manager_hostname`` or
            ``manager_port``, else the connection's host and port 15672 (15671 over TLS).
        userid, password: None is the transport option ``manager_userid`` or ``manager_password``, else
            the connection's login, asked for anew with each request.
        timeout: seconds for one request; None is the connection's ``reply_timeout``.

    All methods may switch, and raise

    - ``OperationalError`` when nothing responds there (is the plugin enabled?), and
    - :class:`~greenconn.exceptions.ManagementError` when the broker refuses; its ``code`` is the HTTP
      status (401 login, 403 permission, 404 no such thing).
    """

    def __init__(
        self,
        transport: Transport,
        hostname: str | None = None,
        port: int | None = None,
        userid: str | None = None,
        password: str | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        super().__init__(transport)
        client, options = transport.client, transport.options()
        is_tls = client.ssl if options.manager_ssl is None else options.manager_ssl
        login = (userid or options.manager_userid, password or options.manager_password)
        self._api = _Requests(
            hostname or options.manager_hostname or client.hostname or "localhost",
            int(port or options.manager_port or (TLS_PORT if is_tls else PORT)),
            ssl=(client.ssl or True) if is_tls else False,
            login=lambda: _completed(login, transport),
            timeout=options.reply_timeout if timeout is None else timeout,
        )

    def __repr__(self) -> str:
        return f"<management API at {self._api.url}>"

    # The broker

    def is_alive(self, vhost: str = "%2F") -> bool:
        """Return whether messages pass through a virtual host (its name quoted, as in pyrabbit)."""
        try:
            return bool(self._get("aliveness-test", unquote(vhost)).get("status") == "ok")
        except OperationalError:
            return False

    def get_overview(self) -> Json:
        """Return version, totals and rates of the whole broker."""
        return self._get("overview")

    def get_nodes(self) -> Json:
        """Return the nodes of the cluster."""
        return self._get("nodes")

    def get_whoami(self) -> Json:
        """Return the user of this client."""
        return self._get("whoami")

    def get_users(self) -> Json:
        """Return all users."""
        return self._get("users")

    def create_user(self, username: str, password: str, tags: str = "") -> bool:
        """Create or change a user; *tags* are separated by commas."""
        return self._done("PUT", "users", username, body={"password": password, "tags": tags})

    def delete_user(self, username: str) -> bool:
        """Delete a user."""
        return self._done("DELETE", "users", username)

    # Virtual hosts

    def get_all_vhosts(self) -> Json:
        """Return all virtual hosts."""
        return self._get("vhosts")

    get_vhosts = get_all_vhosts

    def get_vhost_names(self) -> list[str]:
        """Return the names of all virtual hosts."""
        return [each["name"] for each in self.get_all_vhosts()]

    def get_vhost(self, vname: str) -> Json:
        """Return one virtual host."""
        return self._get("vhosts", vname)

    def create_vhost(self, vname: str) -> bool:
        """Create a virtual host."""
        return self._done("PUT", "vhosts", vname)

    def delete_vhost(self, vname: str) -> bool:
        """Delete a virtual host with all that is in it."""
        return self._done("DELETE", "vhosts", vname)

    def get_permissions(self) -> Json:
        """Return the permissions of all users."""
        return self._get("permissions")

    def get_vhost_permissions(self, vname: str) -> Json:
        """Return the permissions in a virtual host."""
        return self._get("vhosts", vname, "permissions")

    def get_user_permissions(self, username: str) -> Json:
        """Return the permissions of a user."""
        return self._get("users", username, "permissions")

    def set_vhost_permissions(
        self, vname: str, username: str, config: str, rd: str, wr: str
    ) -> bool:
        """Set the names (patterns) that a user may configure, read and write in a virtual host."""
        body = {"configure": config, "read": rd, "write": wr}
        return self._done("PUT", "permissions", vname, username, body=body)

    def delete_permission(self, vname: str, username: str) -> bool:
        """Delete the permissions of a user in a virtual host."""
        return self._done("DELETE", "permissions", vname, username)

    # Connections, channels, consumers

    def get_connections(self) -> Json:
        """Return all connections; those of this library are marked in ``client_properties``."""
        return self._get("connections")

    def get_connection(self, name: str) -> Json:
        """Return one connection, by its name in :meth:`get_connections`."""
        return self._get("connections", name)

    def delete_connection(self, name: str) -> bool:
        """Close a connection, as an operator does."""
        return self._done("DELETE", "connections", name)

    def get_channels(self) -> Json:
        """Return all channels."""
        return self._get("channels")

    def get_channel(self, name: str) -> Json:
        """Return one channel."""
        return self._get("channels", name)

    def get_consumers(self, vhost: str | None = None) -> Json:
        """Return all consumers, or those of a virtual host."""
        return self._get("consumers", *_optional(vhost))

    # Exchanges

    def get_exchanges(self, vhost: str | None = None) -> Json:
        """Return all exchanges, or those of a virtual host."""
        return self._get("exchanges", *_optional(vhost))

    def get_exchange(self, vhost: str, name: str) -> Json:
        """Return one exchange."""
        return self._get("exchanges", vhost, name)

    def create_exchange(
        self,
        vhost: str,
        name: str,
        xtype: str,
        auto_delete: bool = False,
        durable: bool = True,
        internal: bool = False,
        arguments: Mapping[str, Json] | None = None,
    ) -> bool:
        """Create an exchange."""
        body = {
            "type": xtype,
            "auto_delete": auto_delete,
            "durable": durable,
            "internal": internal,
            "arguments": dict(arguments or {}),
        }
        return self._done("PUT", "exchanges", vhost, name, body=body)

    def delete_exchange(self, vhost: str, name: str) -> bool:
        """Delete an exchange."""
        return self._done("DELETE", "exchanges", vhost, name)

    def publish(
        self,
        vhost: str,
        xname: str,
        rt_key: str,
        payload: str,
        payload_enc: str = "string",
        properties: Mapping[str, Json] | None = None,
    ) -> bool:
        """Publish a message, slowly; return whether it was routed to a queue.

        Arguments:
            payload_enc: ``string`` or ``base64``, which *payload* is then.
        """
        body = {
            "routing_key": rt_key,
            "payload": payload,
            "payload_encoding": payload_enc,
            "properties": dict(properties or {}),
        }
        result = self._api.call(
            "POST", "exchanges", vhost, xname or "amq.default", "publish", body=body
        )
        return bool(result["routed"])

    # Queues

    def get_queues(self, vhost: str | None = None) -> Json:
        """Return all queues, or those of a virtual host."""
        return self._get("queues", *_optional(vhost))

    def get_queue(self, vhost: str, name: str) -> Json:
        """Return one queue."""
        return self._get("queues", vhost, name)

    def get_queue_depth(self, vhost: str, name: str) -> int:
        """Return the number of messages in a queue, as of the broker's last statistics (every 5 s)."""
        return int(self.get_queue(vhost, name).get("messages", 0))

    def get_queue_depths(self, vhost: str, names: Iterable[str] | None = None) -> dict[str, int]:
        """Return the number of messages in each of the queues *names*, or of a virtual host."""
        depths = {each["name"]: int(each.get("messages", 0)) for each in self.get_queues(vhost)}
        return depths if names is None else {name: depths[name] for name in names}

    def create_queue(
        self,
        vhost: str,
        name: str,
        *,
        auto_delete: bool = False,
        durable: bool = True,
        arguments: Mapping[str, Json] | None = None,
    ) -> bool:
        """Create a queue."""
        body = {
            "auto_delete": auto_delete,
            "durable": durable,
            "arguments": dict(arguments or {}),
        }
        return self._done("PUT", "queues", vhost, name, body=body)

    def purge_queue(self, vhost: str, name: str) -> bool:
        """Delete the messages of a queue that are ready for delivery."""
        return self._done("DELETE", "queues", vhost, name, "contents")

    def purge_queues(self, queues: Iterable[tuple[str, str]]) -> bool:
        """Purge several queues: pairs of virtual host and name."""
        for vhost, name in queues:
            self.purge_queue(vhost, name)
        return True

    def delete_queue(self, vhost: str, qname: str) -> bool:
        """Delete a queue."""
        return self._done("DELETE", "queues", vhost, qname)

    def get_messages(
        self,
        vhost: str,
        qname: str,
        count: int = 1,
        requeue: bool = False,
        truncate: int | None = None,
        encoding: str = "auto",
    ) -> Json:
        """Get messages from a queue.

        Arguments:
            count: at most.
            requeue: requeue them; they are marked as redelivered then.
            truncate: bytes of a body that are shown.
            encoding: ``auto`` or ``base64``.
        """
        body: dict[str, Json] = {
            "count": count,
            "ackmode": "ack_requeue_true" if requeue else "ack_requeue_false",
            "encoding": encoding,
        }
        if truncate is not None:
            body["truncate"] = truncate
        return self._api.call("POST", "queues", vhost, qname, "get", body=body)

    # Bindings

    def get_bindings(self, vhost: str | None = None) -> Json:
        """Return all bindings (``source``, ``destination``, ``routing_key``...) or a virtual host's."""
        return self._get("bindings", *_optional(vhost))

    def get_queue_bindings(self, vhost: str, qname: str) -> Json:
        """Return the bindings of a queue."""
        return self._get("queues", vhost, qname, "bindings")

    def create_binding(
        self,
        vhost: str,
        exchange: str,
        queue: str,
        rt_key: str = "",
        args: Mapping[str, Json] | None = None,
    ) -> bool:
        """Bind a queue to an exchange."""
        body = {"routing_key": rt_key, "arguments": dict(args or {})}
        return self._done("POST", "bindings", vhost, "e", exchange, "q", queue, body=body)

    def delete_binding(self, vhost: str, exchange: str, queue: str, rt_key: str) -> bool:
        """Delete all bindings of a queue to an exchange that have this routing key."""
        between = ("bindings", vhost, "e", exchange, "q", queue)
        for each in self._get(*between):
            if each["routing_key"] == rt_key:
                self._done("DELETE", *between, each["properties_key"])
        return True

    def _get(self, *path: str) -> Json:
        return self._api.call("GET", *path)

    def _done(self, method: str, *path: str, body: Json = None) -> bool:
        self._api.call(method, *path, body=body)
        return True


def _optional(vhost: str | None) -> tuple[str, ...]:
    return () if vhost is None else (vhost,)


def _completed(
    login: tuple[str | None, str | None], transport: Transport
) -> tuple[str | None, str | None]:
    """Return *login*, completed by user and password of the connection."""
    userid, password = login
    if userid is None or password is None:
        of_connection = transport.login()
        userid, password = userid or of_connection[0], password or of_connection[1]
    return userid, password


class _Requests:
    """Requests to the management API, and the errors for its refusals.

    Arguments:
        hostname, port: its address.
        ssl: kombu's ``ssl`` argument; False is plain HTTP.
        login: returns user and password; called before each request; may switch.
        timeout: seconds for one request; None waits.

    Attributes:
        url: that of the API, without the login.
    """

    def __init__(
        self,
        hostname: str,
        port: int,
        *,
        ssl: Any,
        login: Callable[[], tuple[str | None, str | None]],
        timeout: float | None,
    ) -> None:
        if "://" in hostname:  # a name of no host, and it may have a password
            raise ValueError(
                f"manager_hostname must be a name or an address, got {mask_secrets(hostname)!r}: pass "
                f"port and login as manager_port, manager_userid and manager_password"
            )
        self._hostname = hostname
        self._port = port
        self._ssl = ssl
        self._login = login
        self._timeout = timeout
        shown = f"[{hostname}]" if ":" in hostname else hostname
        self.url = f"http{'s' if ssl else ''}://{shown}:{port}/api"

    def call(self, method: str, *path: str, body: Json = None) -> Json:
        """Send one request and return the response.  May switch.

        Arguments:
            path: its parts, not quoted.
            body: sent as JSON; None: nothing.

        Returns:
            The response, decoded; None if it is empty.

        Raises:
            OperationalError: nothing responds there.
            ManagementError: the broker refuses, or something else responds.
        """
        target = "/api/" + "/".join(quote(part, safe="") for part in path)
        response = self._send(method, target, b"" if body is None else json.dumps(body).encode())
        if response.status >= 400:
            raise self._refused(method, target, response)
        if not response.body:
            return None
        try:
            return json.loads(response.body)
        except ValueError as exc:
            raise ManagementError(
                response.status, f"{self.url} is not RabbitMQ's management API"
            ) from exc

    def _send(self, method: str, target: str, body: bytes) -> HttpResponse:
        pair = ":".join(part or "" for part in self._login()).encode()
        # No Accept: a resource whose response is empty refuses to send that as JSON.
        headers = {"Authorization": f"Basic {b64encode(pair).decode()}", "Connection": "close"}
        if body:
            headers["Content-Type"] = "application/json"
        try:
            # A client for each request, as a manager is never closed.
            with HttpClient(self._hostname, self._port, ssl=self._ssl or None) as client:
                return client.request(
                    method,
                    target,
                    deadline=Deadline(self._timeout),
                    headers=headers,
                    body=body,
                    limit=LIMIT,
                )
        except OSError as exc:
            raise _NoManagement(
                f"no management API at {self.url} ({exc}): the broker needs the plugin "
                f"rabbitmq_management; set its address with the transport options "
                f"manager_hostname, manager_port and manager_ssl"
            ) from exc

    def _refused(self, method: str, target: str, response: HttpResponse) -> ManagementError:
        reason = response.reason
        try:
            error = json.loads(response.body)
            reason = str(error.get("reason") or error.get("error") or reason)
        except (ValueError, AttributeError):
            pass
        return ManagementError(response.status, f"{method} {target} at {self.url}: {reason}")
