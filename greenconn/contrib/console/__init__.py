"""The console: queues, dead letters, handlers and schedules on web pages, with buttons.

::

    from greenconn.contrib.console import Console

    console = Console(app, authorize=lambda environ, action: environ.get("REMOTE_USER") == "ops")

The object is a WSGI application.  It is served by gevent, in the process whose handlers it is to show:
mounted in Flask or Django, under a gevent worker of gunicorn, or alone by ``greenconn console``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from hashlib import blake2b
from importlib.resources import files
from io import BytesIO
from time import monotonic
from typing import Any, Final, TypeAlias

from greenconn.connection import Connection
from greenconn.contrib.console.actions import ACTIONS, Actions, Choice, WrongInput
from greenconn.contrib.console.broker import INTERVAL, BrokerView, HandlerWatch
from greenconn.contrib.console.pages import PAGES, Pages, Request
from greenconn.contrib.console.security import (
    HEADERS,
    MASKED,
    VIEW,
    Authorize,
    Guard,
    Mask,
    Refused,
    masked_text,
    who,
)
from greenconn.exceptions import error_summary
from greenconn.listeners import add_listener, remove_listener
from greenconn.service.app import App

__all__ = ["ACTIONS", "MASKED", "Console"]

logger = logging.getLogger("greenconn.console")

StartResponse: TypeAlias = Callable[..., Any]

#: Seconds that a page waits for an action before it shows its progress.
PATIENCE: Final = 0.5
#: Seconds of one stream of live rows; the browser asks for the next one.  Short, so that a server that
#: shuts down need not wait.
STREAM: Final = 20.0
#: Name -> content type.
STATIC: Final = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HTML: Final = ("Content-Type", "text/html; charset=utf-8")


class Console:
    """A WSGI application with pages about one broker, and about the process that serves it.

    Arguments:
        app_or_url: the :class:`greenconn.App`, ``Connection`` or URL whose broker is meant; None: the
            default connection.  The console opens connections of its own.
        authorize: called with the WSGI environ and the name of an action, ``"view"`` or one of
            :data:`ACTIONS`; returns True if it may be done, else False.  None: all may view, and no
            action is allowed.
        queues: names of queues, for brokers that cannot list theirs.
        show_bodies: whether bodies are shown.
        mask: fields of bodies and headers whose values are not shown: those with one of these names in
            theirs, in any case.
        hosts: names by which this server may be asked (``Host`` without the port).  None: any.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the URL is invalid.
    """

    def __init__(
        self,
        app_or_url: App | Connection | str | None = None,
        authorize: Authorize | None = None,
        *,
        queues: Iterable[str] = (),
        show_bodies: bool = True,
        mask: Collection[str] = MASKED,
        hosts: Collection[str] | None = None,
    ) -> None:
        if isinstance(queues, str):
            raise TypeError(f"queues must be a list of names, got {queues!r}")
        if isinstance(app_or_url, str):
            app_or_url = Connection(app_or_url)
        elif not isinstance(app_or_url, (App, Connection, type(None))):
            raise TypeError(
                f"app_or_url must be an App, a Connection, a URL or None, got {app_or_url!r}"
            )
        app = app_or_url if isinstance(app_or_url, App) else None
        self._guard = Guard(authorize, hosts)
        self._view = BrokerView(app_or_url, queues)
        self._watch = HandlerWatch()
        masked = Mask(mask)
        self._actions = Actions(self._view, self._watch, app, masked)
        self._pages = Pages(
            self._view, self._actions, self._watch, app, show_bodies=show_bodies, mask=masked
        )
        self._static = {name: files(__package__).joinpath(name).read_bytes() for name in STATIC}
        digest = blake2b(b"".join(self._static.values()), digest_size=6)
        self._pages.version = digest.hexdigest()
        #: Fragments that several viewers share: by page, query and rights.
        self._fragments: dict[tuple[Any, ...], tuple[object, str]] = {}
        add_listener(self._watch)

    @property
    def label(self) -> str:
        """The URL of the broker, with the password masked."""
        return self._view.label

    def close(self) -> None:
        """Close the console's connections and end its actions.  May switch."""
        remove_listener(self._watch)
        for job in self._actions.running():
            job.stop()
        self._view.close()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Respond to a request.  May switch."""
        is_head = environ.get("REQUEST_METHOD") == "HEAD"
        try:
            status, headers, body = self._respond(environ)
        except Refused as exc:
            status, headers, body = exc.status, [HTML], self._error(environ, str(exc))
        except WrongInput as exc:
            status, headers, body = "400 Bad Request", [HTML], self._error(environ, str(exc))
        except Exception as exc:
            logger.exception("%s %s failed", who(environ), ascii(environ.get("PATH_INFO")))
            text = masked_text(error_summary(exc))
            status, headers, body = "500 Internal Server Error", [HTML], self._error(environ, text)
        names = {name for name, _ in headers}
        if "Cache-Control" not in names:
            headers.append(("Cache-Control", "no-store"))
        if isinstance(body, bytes):
            headers.append(("Content-Length", str(len(body))))
        start_response(status, [*headers, *HEADERS])
        if is_head:
            return []
        return [body] if isinstance(body, bytes) else body

    def _error(self, environ: dict[str, Any], text: str) -> bytes:
        # Of the request nothing else is read: that may be what is wrong with it.
        request = Request({"SCRIPT_NAME": environ.get("SCRIPT_NAME", "")}, "")
        return _encoded(self._pages.error(request, text))

    def _respond(
        self, environ: dict[str, Any]
    ) -> tuple[str, list[tuple[str, str]], bytes | Iterator[bytes]]:
        self._guard.check_host(environ)
        method = environ.get("REQUEST_METHOD", "GET")
        path = environ.get("PATH_INFO", "")
        if path.startswith("/static/"):
            return self._static_file(path.removeprefix("/static/"))
        self._guard.check(environ, VIEW)
        if method == "POST":
            return self._act(environ, path)
        if method not in ("GET", "HEAD"):
            raise Refused(f"the method {method[:20]} is not allowed", "405 Method Not Allowed")
        name = path.strip("/")
        request = Request(environ, name, self._allowed(environ))
        if not path:
            return "301 Moved Permanently", [("Location", request.link("")), HTML], b""
        if name == "live":
            headers = [("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no")]
            return "200 OK", headers, self._stream(request)
        page = PAGES.get(name)
        if page is None:
            raise Refused("there is no such page", "404 Not Found")
        return "200 OK", [HTML], _encoded(page(self._pages, request))

    def _allowed(self, environ: dict[str, Any]) -> frozenset[str]:
        return frozenset(each for each in ACTIONS if self._guard.allows(environ, each))

    def _static_file(self, name: str) -> tuple[str, list[tuple[str, str]], bytes]:
        if name not in self._static:
            raise Refused("there is no such file", "404 Not Found")
        headers = [
            ("Content-Type", STATIC[name]),
            ("Cache-Control", "public, max-age=31536000, immutable"),
        ]
        return "200 OK", headers, self._static[name]

    # -- live rows

    def _stream(self, request: Request) -> Iterator[bytes]:
        """Return server-sent events with the parts of a page that change.  May switch."""
        name = request.live
        if not hasattr(self._pages, f"live_{name}"):
            raise Refused("there is no such page", "404 Not Found")
        return self._events(request, name)

    def _events(self, request: Request, name: str) -> Iterator[bytes]:
        yield b"retry: 1000\n\n"
        end, number, sent = monotonic() + STREAM, -1, ""
        while monotonic() < end and not self._view.is_closed:
            number = self._view.wait_newer(number, INTERVAL).number
            fragment = self._fragment(request, name, number)
            if fragment != sent:
                sent = fragment
                yield b"data: " + json.dumps(fragment).encode() + b"\n\n"
            else:
                yield b":\n\n"  # finds out whether the viewer is still there

    def _fragment(self, request: Request, name: str, number: int) -> str:
        """Return the changing parts of a page, made once for all viewers of the same."""
        key = (name, request.query_string, request.allowed)
        age = (number, monotonic() // INTERVAL)
        kept = self._fragments.get(key)
        if kept is None or kept[0] != age:
            if len(self._fragments) > 100:
                self._fragments.clear()
            kept = self._fragments[key] = age, getattr(self._pages, f"live_{name}")(request)
        return kept[1]

    # -- actions

    def _act(self, environ: dict[str, Any], path: str) -> tuple[str, list[tuple[str, str]], bytes]:
        self._guard.check_origin(environ)
        action = path.strip("/").removeprefix("do/")
        request = Request(environ, action)
        if action == "stop":
            job = self._actions.jobs.get(request.field("id"))
            if job is None:
                raise Refused("this action has ended, or runs in another process", "404 Not Found")
            self._guard.check(environ, job.action)
            logger.info("%s: stop: %s", who(environ), ascii(job.text)[1:-1])
            job.stop()
        elif action in ACTIONS:
            self._guard.check(environ, action)
            job = getattr(self, f"_do_{action}")(who(environ), request)
            job.wait(PATIENCE)
            self._view.wait_newer(self._view.snapshot.number, PATIENCE)
        else:
            raise Refused("there is no such action", "404 Not Found")
        back = request.field("back")
        location = request.link("job", id=job.id, back=back)
        return "303 See Other", [("Location", location), HTML], b""

    def _do_publish(self, user: str, request: Request) -> Any:
        field = request.field
        return self._actions.publish(
            user, request.needed("queue"), field("body"), field("content_type"), field("headers")
        )

    def _do_purge(self, user: str, request: Request) -> Any:
        request.needed("sure")
        return self._actions.purge(user, request.needed("queue"))

    def _do_move(self, user: str, request: Request) -> Any:
        queue, target = request.needed("queue"), request.needed("target")
        return self._actions.move(user, queue, target, request.limit(), request.rate())

    def _do_pause(self, user: str, request: Request) -> Any:
        return self._actions.pause(user, request.needed("queue"))

    def _do_resume(self, user: str, request: Request) -> Any:
        return self._actions.resume(user, request.needed("queue"))

    def _do_retry(self, user: str, request: Request) -> Any:
        return self._actions.retry(
            user,
            request.needed("name"),
            _choice(request),
            target=request.field("target") or None,
            limit=request.limit(),
            rate=request.rate(),
        )

    def _do_delete(self, user: str, request: Request) -> Any:
        request.needed("sure")
        return self._actions.delete(user, request.needed("name"), _choice(request))

    def _do_edit(self, user: str, request: Request) -> Any:
        field, needed = request.field, request.needed
        if not self._pages.show_bodies:
            raise Refused("bodies are not shown here, and cannot be edited")
        return self._actions.edit(
            user, needed("name"), needed("key"), needed("target"), field("body"), field("headers")
        )

    def _do_interrupt(self, user: str, request: Request) -> Any:
        return self._actions.interrupt(user, request.needed("key"))

    def _do_run(self, user: str, request: Request) -> Any:
        return self._actions.run(user, request.needed("name"))

    # -- Django

    def django_view(self, request: Any, path: str = "") -> Any:
        """Respond to a request of Django, as a view.  May switch.

        ``authorize`` finds the request in the environ as ``django.request``.

        Arguments:
            request: Django's.
            path: the rest of the path, from ``re_path(r"^queues(?P<path>/.*)?$", console.django_view)``.
        """
        from django.http import HttpResponse, StreamingHttpResponse

        environ = dict(request.environ)
        whole, path = request.path_info, path or ""
        environ["SCRIPT_NAME"] = _wsgi_text(
            environ.get("SCRIPT_NAME", ""), whole.removesuffix(path) if path else whole
        )
        environ["PATH_INFO"] = path.encode().decode("latin-1")
        environ["wsgi.input"] = BytesIO(request.body)
        environ["django.request"] = request
        answer: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            answer.update(status=int(status[:3]), reason=status[4:], headers=headers)

        body = self(environ, start_response)
        kind = HttpResponse if isinstance(body, list) else StreamingHttpResponse
        headers = dict(answer["headers"])
        response = kind(body, status=answer["status"], reason=answer["reason"], headers=headers)
        return response

    #: Forms are checked by their origin, see :class:`~greenconn.contrib.console.security.Guard`.
    django_view.csrf_exempt = True  # type: ignore[attr-defined]


def _wsgi_text(before: str, path: str) -> str:
    return before + path.encode().decode("latin-1")


def _choice(request: Request) -> Choice:
    keys = request.fields("key")
    if not keys and request.field("all") != "1":
        raise WrongInput("choose at least one message")
    fields = {
        name: request.field(name) if name in request.form else None for name in ("error", "reason")
    }
    return Choice(keys, request.field("queue"), **fields)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
