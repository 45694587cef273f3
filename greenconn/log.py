"""Logging: the fields of the library's log records, a JSON formatter, and kombu's logging utilities.

The modules of greenconn log to the loggers ``greenconn.<module>`` with the standard library, and add no
handlers.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import chain, repeat
from logging.handlers import WatchedFileHandler
from numbers import Number
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from greenconn.message import Message

__all__ = [
    "DISABLE_TRACEBACKS",
    "FIELDS",
    "LOG_LEVELS",
    "JSONFormatter",
    "Log",
    "LogMixin",
    "get_logger",
    "get_loglevel",
    "message_fields",
    "safeify_format",
    "setup_logging",
]

_NUMBERS: Final[Mapping[str, int]] = {
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.FATAL,
    "ERROR": logging.ERROR,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "DEBUG": logging.DEBUG,
    "NOTSET": logging.NOTSET,
}

#: The numbers of log levels by name, and their names by number.
LOG_LEVELS: Final[dict[Any, Any]] = {
    **_NUMBERS,
    **{number: logging.getLevelName(number) for number in _NUMBERS.values()},
}

#: Set it to True to log errors without their tracebacks.
DISABLE_TRACEBACKS = False


def get_logger(logger: str | logging.Logger) -> logging.Logger:
    """Return a logger, with a ``NullHandler`` if it has no handler.

    Arguments:
        logger: the name of a logger, or a logger.
    """
    if isinstance(logger, str):
        logger = logging.getLogger(logger)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger


def get_loglevel(level: Any) -> Any:
    """Return the number of a log level; a number is returned unchanged.

    Arguments:
        level: the name or the number of the level.

    Raises:
        KeyError: no level has this name.
    """
    return LOG_LEVELS[level] if isinstance(level, str) else level


class _Shown:
    """An argument whose ``%s`` and ``%r`` never raise; lazy values are computed only if logged."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __str__(self) -> str:
        if isinstance(self.value, bytes):
            return self.value.decode(errors="replace")
        try:
            return str(self.value)
        except Exception as exc:
            return f"<Unrepresentable {type(self.value)!r}: {type(exc).__name__}>"

    def __repr__(self) -> str:
        try:
            return repr(self.value)
        except Exception as exc:
            return f"<Unrepresentable {type(self.value)!r}: {type(exc).__name__}>"


def _shown(value: Any) -> Any:
    """Numbers and mappings stay as they are, for ``%d`` and ``%(name)s``."""
    return value if isinstance(value, (str, Number, Mapping)) else _Shown(value)


def safeify_format(
    fmt: str, args: Sequence[Any], filters: Mapping[str, Callable[[Any], str]] | None = None
) -> Iterator[Any]:
    """Yield each of *args*, converted so that formatting it with *fmt* does not raise an error.

    Arguments:
        fmt: a format string with ``%`` placeholders.
        args: the arguments of the format string.
        filters: a mapping of conversion types, such as ``s``, to functions that convert an argument to
            text.  None converts the arguments of ``%s`` and ``%r``.
    """
    kinds = _KIND.findall(fmt.replace("%%", ""))
    for kind, value in zip(kinds, args, strict=False):
        convert = (filters or _FILTERS).get(kind)
        yield value if convert is None else convert(value)


#: What follows a ``%``: the type of a conversion that has no width, or another ``%``.
_KIND: Final = re.compile(r"%(.)")
_FILTERS: Final[Mapping[str, Callable[[Any], str]]] = {
    "s": lambda value: str(_Shown(value)),
    "r": lambda value: repr(_Shown(value)),
}


def _as_text(fmt: str, args: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return a format with ``%s`` for ``%r``, and its arguments, as text where those are meant.

    As with kombu, so that handlers that keep the arguments of records keep none of the objects.
    """
    if "*" in fmt:  # a width that is an argument itself
        return fmt, [_shown(value) for value in args]
    kinds = chain(_KIND.findall(fmt.replace("%%", "")), repeat(""))
    shown = [
        _FILTERS[kind](value) if kind in _FILTERS else _shown(value)
        for kind, value in zip(kinds, args, strict=False)
    ]
    return _KIND.sub(lambda found: "%s" if found[1] == "r" else found[0], fmt), shown


class LogMixin:
    """A mixin that adds the methods of a logger to a class."""

    def debug(self, *args: Any, **kwargs: Any) -> None:
        """Log a detail for debugging."""
        self.log(logging.DEBUG, *args, **kwargs)

    def info(self, *args: Any, **kwargs: Any) -> None:
        """Log an event of normal operation."""
        self.log(logging.INFO, *args, **kwargs)

    def warn(self, *args: Any, **kwargs: Any) -> None:
        """Log a problem from which the program recovers."""
        self.log(logging.WARNING, *args, **kwargs)

    def error(self, *args: Any, **kwargs: Any) -> None:
        """Log an error, with the traceback of the current exception."""
        kwargs.setdefault("exc_info", True)
        self.log(logging.ERROR, *args, **kwargs)

    def critical(self, *args: Any, **kwargs: Any) -> None:
        """Log an error that ends the program, with the traceback of the current exception."""
        kwargs.setdefault("exc_info", True)
        self.log(logging.CRITICAL, *args, **kwargs)

    def annotate(self, text: str) -> str:
        """Return *text* with the logger's name in front."""
        return f"{self.logger_name} - {text}"

    def log(self, severity: int, *args: Any, **kwargs: Any) -> None:
        """Log a format string with its arguments, or several objects separated by spaces.

        Arguments:
            severity: the number of the log level.
            args: a format string with ``%`` placeholders and its arguments; or a single object; or
                several objects of which the first is not a string.
            kwargs: the keyword arguments of ``Logger.log``.
        """
        if DISABLE_TRACEBACKS:
            kwargs.pop("exc_info", None)
        logger = self.logger
        if not logger.isEnabledFor(severity):
            return
        if len(args) > 1 and isinstance(args[0], str):
            fmt, shown = _as_text(args[0], args[1:])
            logger.log(severity, self.annotate(fmt), *shown, **kwargs)
        else:
            text = " ".join(str(_Shown(argument)) for argument in args)
            logger.log(severity, self.annotate(text), **kwargs)

    def get_logger(self) -> logging.Logger:
        """Return the logger with the name ``logger_name``."""
        return get_logger(self.logger_name)

    def is_enabled_for(self, level: int | str) -> bool:
        """Return whether messages of a level are logged."""
        return self.logger.isEnabledFor(self.get_loglevel(level))

    def get_loglevel(self, level: int | str) -> int:
        """Return the number of a log level.

        Raises:
            KeyError: no level has this name.
        """
        return level if isinstance(level, int) else int(LOG_LEVELS[level])

    @property
    def logger(self) -> logging.Logger:
        """The logger that the methods of this object log to."""
        logger = self.__dict__.get("_mixed_in_logger")
        if logger is None:
            logger = self.__dict__["_mixed_in_logger"] = self.get_logger()
        return logger

    @logger.setter
    def logger(self, logger: logging.Logger) -> None:
        self.__dict__["_mixed_in_logger"] = logger

    @property
    def logger_name(self) -> str:
        """The name of the logger: the name of the class."""
        return type(self).__name__


class Log(LogMixin):
    """A logger with the methods of :class:`LogMixin`.

    Arguments:
        name: the name of the logger, which precedes each message.
        logger: the logger to log to.  None uses the logger named *name*.
    """

    def __init__(self, name: str, logger: logging.Logger | None = None) -> None:
        self._logger_name = name
        self._logger = logger

    def get_logger(self) -> logging.Logger:
        """Return the logger that was passed, or the logger with the name ``logger_name``."""
        return self._logger or super().get_logger()

    @property
    def logger_name(self) -> str:
        """The name of the logger."""
        return self._logger_name


def setup_logging(
    loglevel: int | str | None = None, logfile: str | TextIO | None = None
) -> logging.Logger:
    """Add a handler to the root logger and set its level, unless it already has a handler.

    Arguments:
        loglevel: the name or the number of the log level.  None means ERROR.
        logfile: the path of a log file, or an open file.  None means standard error.

    Returns:
        The root logger.
    """
    root = logging.getLogger()
    level = get_loglevel(loglevel or "ERROR")
    if not root.handlers:
        target = logfile or sys.__stderr__
        if isinstance(target, str):
            root.addHandler(WatchedFileHandler(target))
        else:
            root.addHandler(logging.StreamHandler(target))
        root.setLevel(level)
    return root


#: The additional attributes (``extra``) that log records of the library may have.
FIELDS: Final = frozenset(
    {
        "attempt",
        "connection",
        "consumer",
        "correlation_id",
        "delivery_tag",
        "message_id",
        "pool",
        "queue",
    }
)
#: Characters of an id that a record has.
LONGEST_ID: Final = 255
#: What each record has.
_STANDARD: Final = frozenset({*vars(logging.makeLogRecord({})), "asctime", "message", "taskName"})


def message_fields(message: Message, **fields: object) -> dict[str, Any]:
    """Return the fields of a log record about *message*: its ids, its delivery tag and *fields*.

    Fields whose value is None are omitted.
    """
    properties = message.properties
    found = {
        **fields,
        "delivery_tag": message.delivery_tag,
        "message_id": _short(properties.get("message_id")),
        "correlation_id": _short(properties.get("correlation_id")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _short(value: Any) -> Any:
    """Return an id of a message, which its publisher may make of any type and length, for a record."""
    if value is None or isinstance(value, (int, float)):
        return value
    return str(value)[:LONGEST_ID]


class JSONFormatter(logging.Formatter):
    """A formatter that writes each log record, of any logger, as one line of JSON.

    Each line has ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message`` and the fields passed as
    ``extra``.  Records with an exception also have ``error`` (its class) and ``traceback``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        when = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line.setdefault(name, value)
        error = record.exc_info[1] if record.exc_info else None
        if record.exc_info and error is not None:
            line["error"] = f"{type(error).__module__}.{type(error).__qualname__}"
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=lambda value: str(_Shown(value)), skipkeys=True)
