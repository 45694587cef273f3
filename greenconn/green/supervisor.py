"""Where every greenlet of the library is born: with a name, and with an end that is not lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gevent import Greenlet

__all__ = ["spawn"]

logger = logging.getLogger("greenconn.green")


def spawn(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Greenlet[..., Any]:
    """Start a greenlet called ``greenconn:<name>``.

    What it raises unexpectedly is logged once under ``greenconn.green`` and ends it, with None as its
    value; being killed is an ordinary end.
    """
    greenlet: Greenlet[..., Any] = Greenlet(_guarded, name, function, args, kwargs)
    greenlet.name = f"greenconn:{name}"
    greenlet.start()
    return greenlet


def _guarded(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception:
        logger.exception("greenlet %r ended with an error", name)
        return None
