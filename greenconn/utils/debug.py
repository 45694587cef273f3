"""Logging of calls (kombu.utils.debug)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import wraps
from typing import Any

from greenconn.log import get_logger
from greenconn.utils.functional import reprcall

__all__ = ["Logwrapped", "setup_logging"]


def setup_logging(
    loglevel: int | None = logging.DEBUG, loggers: Iterable[str] | None = None
) -> None:
    """Let loggers write to standard error.

    Arguments:
        loggers: their names; None means those of connections and channels.
    """
    for name in loggers or ("greenconn.connection", "greenconn.channel"):
        logger = get_logger(name)
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.DEBUG if loglevel is None else loglevel)


class Logwrapped:
    """An object whose method calls are logged, with their arguments.

    Arguments:
        instance: the object.
        logger: a logger or its name.
        ident: begins each record; a format of *instance*.
    """

    def __init__(
        self, instance: Any, logger: logging.Logger | str | None = None, ident: str | None = None
    ) -> None:
        self.instance = instance
        self.logger = get_logger(logger or __name__)
        self.ident = ident

    def __getattr__(self, key: str) -> Any:
        method = getattr(self.instance, key)
        if not callable(method):
            return method

        @wraps(method)
        def logged(*args: Any, **kwargs: Any) -> Any:
            prefix = self.ident.format(self.instance) if self.ident else ""
            # One text, without arguments: so it may hold any character.
            self.logger.debug(prefix + reprcall(method.__name__, args, kwargs))
            return method(*args, **kwargs)

        return logged

    def __enter__(self) -> Logwrapped:
        self.instance.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> Any:
        return self.instance.__exit__(*exc_info)

    def __repr__(self) -> str:
        return repr(self.instance)

    def __dir__(self) -> list[str]:
        return dir(self.instance)
