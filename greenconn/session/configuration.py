"""The broker that a program has configured, for connections that name none.

``greenconn.configure`` replaces it, and the environment variable ``GREENCONN_URL`` is its URL otherwise.
The environment is read once, when the URL is first needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from greenconn.checks import is_kombu
from greenconn.options import BROKER_HEARTBEAT
from greenconn.session.parameters import Parameters, check_is_url

if TYPE_CHECKING:
    from greenconn.connection import ConnectionArguments

URL_VARIABLE: Final = "GREENCONN_URL"
DEFAULT_URL: Final = "amqp://guest:guest@localhost:5672//"


class _Unnamed(str):
    """kombu's default host, which is recognised by its identity."""

    __slots__ = ()


#: The default of the argument *hostname*.
UNNAMED: Final = _Unnamed("localhost")
#: The parameters that say where a broker is, and who logs in there.
_PLACE: Final = ("port", "virtual_host", "transport", "uri_prefix", "userid", "password")


class Configuration:
    """The arguments of ``configure``; replaced as a whole.

    Arguments:
        url: None uses the environment.
    """

    def __init__(
        self,
        url: str | None = None,
        options: ConnectionArguments | None = None,
        declare_by_name: bool | None = None,
    ) -> None:
        self._url = url
        self.options: ConnectionArguments = options or {}
        self.declare_by_name = declare_by_name

    @property
    def url(self) -> str:
        """URL of the broker; empty if there is none.

        Raises:
            ValueError: that of the environment has no scheme.
        """
        if self._url is None:
            url = os.environ.get(URL_VARIABLE, "")
            if url:
                check_is_url(URL_VARIABLE, url)
            self._url = url
        return self._url


current = Configuration()


def replace(configuration: Configuration) -> None:
    """Use another configuration from now on."""
    global current
    current = configuration


def configured(keywords: Parameters) -> tuple[str, Mapping[str, Any]]:
    """Return host or URL of a connection that was made without one, and what it has by ``configure``.

    Arguments:
        keywords: the arguments of the connection.  If they name a place or a login, they are for kombu's
            default host, and so are those of programs that import greenconn as kombu.

    Returns:
        The host, and those arguments of ``configure`` that are not given in *keywords*.
    """
    if is_kombu() or any(getattr(keywords, name) for name in _PLACE):
        return str(UNNAMED), {}
    missing = {
        name: value
        for name, value in current.options.items()
        if _is_default(name, getattr(keywords, name, None))
    }
    return current.url or str(UNNAMED), missing


def _is_default(name: str, value: object) -> bool:
    if name == "heartbeat":
        return value is BROKER_HEARTBEAT  # another 0 turns them off
    return bool(value == getattr(Parameters, name, None))
