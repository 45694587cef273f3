"""Roles: temporary credentials of STS."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Final
from urllib.parse import urlsplit

from greenconn.exceptions import AccessRefused, PreconditionFailed
from greenconn.green.deadline import NEVER
from greenconn.green.http import HttpClient
from greenconn.transport.SQS.endpoints import find_endpoint
from greenconn.transport.SQS.exceptions import LoginRefused, ServiceBusy
from greenconn.transport.SQS.login import EARLY, LATE, Keys, Login, RenewedLogin
from greenconn.transport.SQS.service import Service

__all__ = ["RoleLogin", "client_of"]

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


class RoleLogin(RenewedLogin):
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
        """In the child of a fork: nobody here asks."""
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
