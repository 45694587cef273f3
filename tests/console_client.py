"""A client of a console: WSGI requests without a server, and the parts of its pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from typing import Any
from urllib.parse import urlencode, urlsplit
from wsgiref.validate import validator

from greenconn.contrib.console import Console

#: What a browser says of a form of the same site.
OWN = {"HTTP_SEC_FETCH_SITE": "same-origin"}


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def elements(self) -> list[tuple[str, dict[str, str | None]]]:
        """The tags of the page with their attributes."""
        return Elements.of(self.text).found

    @property
    def shown(self) -> str:
        """The text of the page, as it is seen."""
        return " ".join("".join(Elements.of(self.text).texts).split())


class Elements(HTMLParser):
    """The elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    @classmethod
    def of(cls, text: str) -> Elements:
        """Return those of *text*."""
        elements = cls()
        elements.feed(text)
        elements.close()
        return elements

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)


class Client:
    """A browser without a screen."""

    def __init__(self, console: Console, prefix: str = "", **environ: Any) -> None:
        self._console = validator(console)
        self._prefix = prefix
        self._environ = environ

    def request(self, method: str, path: str, body: bytes = b"", **environ: Any) -> Answer:
        """Send a request.  May switch."""
        parts = urlsplit(path)
        given: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": self._prefix,
            "PATH_INFO": parts.path.removeprefix(self._prefix).encode().decode("latin-1"),
            "QUERY_STRING": parts.query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": _Errors(),
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **self._environ,
            **environ,
        }
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            started[:] = [status, headers]
            return lambda data: None

        result: Any = self._console(given, start_response)
        try:
            text = b"".join(result).decode()
        finally:
            result.close()
        status, headers = started
        return Answer(int(status[:3]), dict(headers), text)

    def get(self, page: str = "", **query: object) -> Answer:
        """Ask for a page.  May switch."""
        text = urlencode({name: str(each) for name, each in query.items()})
        return self.request("GET", f"{self._prefix}/{page}?{text}")

    def post(self, action: str, _sent: Mapping[str, str] = OWN, /, **fields: Any) -> Answer:
        """Send a form, and return the page that follows it.  May switch."""
        body = urlencode(fields, doseq=True).encode()
        kind = "application/x-www-form-urlencoded"
        path = f"{self._prefix}/do/{action}"
        answer = self.request("POST", path, body, CONTENT_TYPE=kind, **_sent)
        if answer.status != 303:
            return answer
        return self.request("GET", answer.headers["Location"])


class _Errors:
    """The log of a server, in which nothing may be written."""

    def write(self, text: str) -> None:
        raise AssertionError(text)

    writelines = write

    def flush(self) -> None:
        pass
