"""The checks of requests, the headers of responses, and the masking of fields."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from greenconn.url import mask_secrets

logger = logging.getLogger("greenconn.console")

#: Called with the WSGI environ and the name of the action; True: it may be done.
Authorize: TypeAlias = Callable[[dict[str, Any], str], bool]

#: The action of looking at a page.
VIEW: Final = "view"
#: What is written in the place of a masked value.
MASK: Final = "**"
#: Names of fields whose values are masked, in any case, and with any other characters around them.
MASKED: Final = (
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "api_key",
    "apikey",
    "cookie",
)
#: Of all responses.  No script, style or image of another origin, and none in the page itself.
HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class Refused(Exception):
    """A request that is not answered as asked; its text is shown.

    Arguments:
        status: of the response.
    """

    def __init__(self, text: str, status: str = "403 Forbidden") -> None:
        super().__init__(text)
        self.status = status


class Guard:
    """The checks of all requests.

    Arguments:
        authorize: the program's function; None: all may look, and do nothing else.
        hosts: names that a request may have in ``Host``, without the port; None: any.
    """

    def __init__(self, authorize: Authorize | None, hosts: Collection[str] | None) -> None:
        if authorize is not None and not callable(authorize):
            raise TypeError(f"authorize must be a callable or None, got {authorize!r}")
        self._authorize = authorize
        self._hosts = None if hosts is None else frozenset(each.lower() for each in hosts)

    def allows(self, environ: dict[str, Any], action: str) -> bool:
        """Return whether the program allows an action.  May switch if its function does.

        Raises:
            TypeError: the function returns something else than True or False, as a coroutine.
        """
        if self._authorize is None:
            return action == VIEW
        allowed: object = self._authorize(environ, action)
        if not isinstance(allowed, bool):
            raise TypeError(
                f"authorize must return True or False, got {type(allowed).__name__} for {action!r}"
            )
        return allowed

    def check(self, environ: dict[str, Any], action: str) -> None:
        """Check that the program allows an action, and log a refusal.

        Raises:
            Refused: it does not.
        """
        if not self.allows(environ, action):
            if action != VIEW:
                logger.warning("%s was refused the action %s", who(environ), action)
            raise Refused(
                f"you may not {action} here"
                if self._authorize is not None
                else "this console is read-only: the program must pass authorize= to allow actions"
            )

    def check_host(self, environ: dict[str, Any]) -> None:
        """Check the name by which this server was asked: a name that was rebound to it is another.

        Raises:
            Refused: it is another.
        """
        host = environ.get("HTTP_HOST", "")
        if self._hosts is not None and _host_name(f"//{host}") not in self._hosts:
            raise Refused(f"this server is not called {host[:100]!r}", "421 Misdirected Request")

    def check_origin(self, environ: dict[str, Any]) -> None:
        """Check that a form was sent from a page of this console.

        A browser says so in ``Sec-Fetch-Site``, and an older one in ``Origin``.

        Raises:
            Refused: it was sent from another site, or nothing says where from.
        """
        site = environ.get("HTTP_SEC_FETCH_SITE")
        origin = environ.get("HTTP_ORIGIN")
        if site is not None:
            is_own = site == "same-origin"
        else:
            is_own = origin is not None and urlsplit(origin).netloc == environ.get("HTTP_HOST")
        if not is_own:
            logger.warning(
                "%s: a form from %s was refused", who(environ), ascii(site or origin)[:100]
            )
            raise Refused("this form was not sent from a page of this console: open it there")


def _host_name(text: str) -> str | None:
    try:
        return urlsplit(text).hostname
    except ValueError:
        return None


def who(environ: Mapping[str, Any]) -> str:
    """Return who sends a request, for the log: the user, if the server or the program has named one."""
    user = environ.get("REMOTE_USER")
    address = environ.get("REMOTE_ADDR") or "an unknown address"
    return ascii(str(user))[1:-1][:100] if user else str(address)[:100]


def masked_text(text: str) -> str:
    """Return *text* without the passwords of the URLs in it."""
    return " ".join(map(_without_password, text.split(" "))) if "://" in text else text


def _without_password(word: str) -> str:
    return mask_secrets(word) if "://" in word else word


class Mask:
    """The fields whose values are not shown.

    Arguments:
        names: of the fields; a field is meant whose name has one of them in it, in any case.
    """

    def __init__(self, names: Collection[str]) -> None:
        if isinstance(names, str):
            raise TypeError(f"mask must be a list of names, got {names!r}")
        self._names = tuple(each.lower() for each in names)

    def hides(self, name: object) -> bool:
        """Return whether the value of a field is not shown."""
        text = str(name).lower().replace("-", "_")
        return any(each in text for each in self._names)

    def apply(self, value: Any) -> Any:
        """Return a value of JSON, or of headers, without the values of masked fields."""
        if isinstance(value, Mapping):
            return {
                name: MASK if self.hides(name) else self.apply(each) for name, each in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.apply(each) for each in value]
        return value
