"""A client of the broker's management API (kombu.utils.amq_manager)."""

from __future__ import annotations

from typing import Any

__all__ = ["get_manager"]


def get_manager(
    client: Any,
    hostname: str | None = None,
    port: int | None = None,
    userid: str | None = None,
    password: str | None = None,
) -> Any:
    """Return a client of the management API of a connection's broker.

    Arguments:
        client: the ``Connection``.
        hostname, port, userid, password: of the API; see ``Connection.get_manager``.
    """
    return client.get_manager(hostname=hostname, port=port, userid=userid, password=password)
