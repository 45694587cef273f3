"""Requests to RabbitMQ's HTTP API, and the errors for its refusals."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from greenconn.exceptions import ManagementError, OperationalError
from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient, HttpResponse

__all__ = ["Json", "ManagementApi"]

#: What JSON can say: the broker's answers are passed on as they are.
Json: TypeAlias = Any
#: Bytes of an answer that are taken: a list of 100,000 queues has 100 MiB.
LIMIT: Final = 256 * 1024 * 1024


class ManagementApi:
    """RabbitMQ's management API as such: requests and their errors.

    Arguments:
        hostname, port: where it is.
        ssl: kombu's ``ssl`` argument; False is plain HTTP.
        login: asked for user and password before each request; may switch.
        timeout: seconds for one request; None waits.

    Attributes:
        url: where it asks, without the login.
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
        self._hostname = hostname
        self._port = port
        self._ssl = ssl
        self._login = login
        self._timeout = timeout
        shown = f"[{hostname}]" if ":" in hostname else hostname
        self.url = f"http{'s' if ssl else ''}://{shown}:{port}/api"

    def call(self, method: str, *path: str, body: Json = None) -> Json:
        """Return one request.  May switch.

        Arguments:
            path: its parts, not quoted.
            body: sent as JSON; None: nothing.

        Returns:
            The answer, or None if it is empty.

        Raises:
            OperationalError: nothing answers there.
            ManagementError: the broker refuses, or something else answers.
        """
        target = "/api/" + "/".join(quote(part, safe="") for part in path)
        answer = self._ask(method, target, b"" if body is None else json.dumps(body).encode())
        if answer.status >= 400:
            raise self._refused(method, target, answer)
        if not answer.body:
            return None
        try:
            return json.loads(answer.body)
        except ValueError as exc:
            raise ManagementError(
                answer.status, f"{self.url} is not RabbitMQ's management API"
            ) from exc

    def _ask(self, method: str, target: str, body: bytes) -> HttpResponse:
        pair = ":".join(part or "" for part in self._login()).encode()
        # No Accept: what answers with nothing refuses to do that as JSON.
        headers = {"Authorization": f"Basic {b64encode(pair).decode()}", "Connection": "close"}
        if body:
            headers["Content-Type"] = "application/json"
        try:
            # A client of its own for each request: nobody closes a manager.
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
            raise OperationalError(
                f"no management API at {self.url} ({exc}): the broker needs the plugin "
                f"rabbitmq_management; set its address with the transport options "
                f"manager_hostname, manager_port and manager_ssl"
            ) from exc

    def _refused(self, method: str, target: str, answer: HttpResponse) -> ManagementError:
        reason = answer.reason
        try:
            said = json.loads(answer.body)
            reason = str(said.get("reason") or said.get("error") or reason)
        except (ValueError, AttributeError):
            pass
        return ManagementError(answer.status, f"{method} {target} at {self.url}: {reason}")
