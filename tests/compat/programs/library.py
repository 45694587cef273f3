"""The two libraries under one set of names, and what programs use to tell what they saw."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

#: Seconds that a program waits for something that must come.
SOON = 30.0

#: Makes a name that only this run of a program uses; the same letter gives the same name.
Names = Callable[[str], str]


class Library:
    """A library, its modules as attributes: ``lib.entity.Queue``."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return importlib.import_module(f"{self.root}.{name}")

    def __repr__(self) -> str:
        return self.root


KOMBU = Library("kombu")
GREENCONN = Library("greenconn")


class Raised:
    """An error that a program saw: equal to that of the other library if one is the other's kind.

    Errors of ours may be more special: what counts is that the same ``except`` clause catches both.
    """

    def __init__(self, exc: BaseException) -> None:
        self.names = [cls.__name__ for cls in type(exc).__mro__]
        self.text = str(exc)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Raised):
            return NotImplemented
        return self.names[0] in other.names or other.names[0] in self.names

    __hash__ = None  # type: ignore[assignment]  # equality is not transitive

    def __repr__(self) -> str:
        return f"Raised({self.names[0]}: {self.text})"


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returns, or what it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as exc:
        return Raised(exc)


def drain(connection: Any, until: Callable[[], Any]) -> None:
    """Drain events until *until* is true."""
    end = monotonic() + SOON
    while not until():
        connection.drain_events(timeout=max(end - monotonic(), 0.01))


def fetch(connection: Any, queue: Any, *, no_ack: bool = False) -> Any:
    """The next message of *queue*, which may still be on its way over another channel."""
    end = monotonic() + SOON
    while (message := queue(connection).get(no_ack=no_ack)) is None:
        if monotonic() > end:
            raise TimeoutError(f"no message came to queue {queue.name} within {SOON:g} s")
        quiet(connection, 0.02)
    return message


def quiet(connection: Any, timeout: float = 0.1) -> bool:
    """Whether nothing more comes."""
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        return True
    return False


def as_kombu_writes(body: Any) -> Any:
    """Return JSON text with kombu's spaces and escapes; anything else as it is."""
    if isinstance(body, str) and body[:1] in "[{":
        with suppress(ValueError):
            return json.dumps(json.loads(body))
    return body


def seen(message: Any) -> dict[str, Any]:
    """All that a program sees of a message, without what differs by nature."""
    info = dict(message.delivery_info)
    return {
        "body": as_kombu_writes(message.body),
        "payload": outcome(lambda: message.payload),
        "content": (message.content_type, message.content_encoding),
        "headers": dict(message.headers),
        "properties": dict(message.properties),
        "info": {
            name: type(value).__name__ if name == "consumer_tag" else value
            for name, value in info.items()
        },
        "errors": [kind.__name__ for kind, *_ in message.errors or ()],
        "accept": message.accept,
        "acknowledged": message.acknowledged,
    }
