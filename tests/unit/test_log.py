"""Logging in kombu's way."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import pytest

from greenconn.caching import lazy
from greenconn.log import (
    FIELDS,
    LOG_LEVELS,
    JSONFormatter,
    LogMixin,
    get_logger,
    get_loglevel,
    message_fields,
    setup_logging,
)
from greenconn.message import Message

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def bare_root() -> Iterator[logging.Logger]:
    """The root logger without handlers (pytest's too); what it gets is closed afterwards."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers
    root.handlers = []
    try:
        yield root
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers = handlers
        root.setLevel(level)


class Worker(LogMixin):
    logger_name = "tests.worker"


class Unwilling:
    def __repr__(self) -> str:
        raise KeyError("no")


def test_levels() -> None:
    assert LOG_LEVELS["WARN"] == LOG_LEVELS["WARNING"] == logging.WARNING
    assert LOG_LEVELS[30] == "WARNING"
    assert get_loglevel("DEBUG") == logging.DEBUG
    assert get_loglevel(17) == 17
    with pytest.raises(KeyError):
        get_loglevel("LOUD")


def test_get_logger() -> None:
    logger = get_logger("tests.log.fresh")
    assert get_logger(logger) is logger
    (handler,) = logger.handlers
    assert isinstance(handler, logging.NullHandler)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("plain",), "plain"),
        (("a %s and %r", "x", "y"), "a x and 'y'"),
        (("%d of %.1f", 3, 2.25), "3 of 2.2"),
        (("%(name)s", {"name": "n"}), "n"),
        (("%s", lazy(str, 5)), "5"),
        (("%s", b"\xff"), "\ufffd"),
        (("%r", b"\xff"), "b'\\xff'"),
        ((1, "two"), "1 two"),
        (("100 %",), "100 %"),
    ],
)
def test_log(args: tuple[Any, ...], text: str, caplog: pytest.LogCaptureFixture) -> None:
    Worker().log(logging.ERROR, *args)
    (record,) = caplog.records
    assert record.name == "tests.worker"
    assert record.getMessage() == f"tests.worker - {text}"


@pytest.mark.parametrize(
    ("args", "fmt", "kept"),
    [
        (("a %s and %r", 1, "y"), "a %s and %s", ("1", "'y'")),
        (("100 %% %r", "y"), "100 %% %s", ("'y'",)),
        (("%%r %d", 3), "%%r %d", (3,)),
        (("%*d %r", 5, 3, "y"), "%*d %r", (5, 3, "y")),
        (("%s", 1, 2), "%s", ("1", 2)),
    ],
)
def test_records_keep_text(
    args: tuple[Any, ...],
    fmt: str,
    kept: tuple[Any, ...],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # too many arguments are an error
    worker = Worker()
    worker.logger = logging.Logger("tests.own")
    handler = logging.handlers.BufferingHandler(10)
    worker.logger.addHandler(handler)
    worker.log(logging.ERROR, *args)
    (record,) = handler.buffer
    assert (record.msg, record.args) == (f"tests.worker - {fmt}", kept)


def test_log_of_what_has_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    Worker().warn("%r", Unwilling())
    Worker().warn("%s", Unwilling())
    Worker().warn(Unwilling())
    assert caplog.text.count("<Unrepresentable") == 3


def test_severities(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    with caplog.at_level(logging.DEBUG):
        try:
            raise KeyError("x")
        except KeyError:
            for name in ("debug", "info", "warn", "error", "critical"):
                getattr(worker, name)("said")
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [
        ("DEBUG", False),
        ("INFO", False),
        ("WARNING", False),
        ("ERROR", True),
        ("CRITICAL", True),
    ]


def test_is_enabled_for() -> None:
    worker = Worker()
    worker.logger = logging.Logger("tests.own", level=logging.INFO)
    assert worker.is_enabled_for("INFO")
    assert not worker.is_enabled_for(logging.DEBUG)
    assert worker.get_loglevel("ERROR") == worker.get_loglevel(40) == 40
    with pytest.raises(KeyError):
        worker.get_loglevel("LOUD")


def test_setup_logging() -> None:
    stream = io.StringIO()
    with bare_root() as root:
        assert setup_logging("INFO", stream) is root
        assert setup_logging("DEBUG") is root  # which has a handler now
        assert root.level == logging.INFO
        logging.getLogger("tests.any").info("heard")
    assert stream.getvalue() == "heard\n"


def test_setup_logging_to_a_file(tmp_path: Path) -> None:
    with bare_root() as root:
        setup_logging(logfile=str(tmp_path / "log"))
        (handler,) = root.handlers
        assert isinstance(handler, WatchedFileHandler)
        assert root.level == logging.ERROR


# Fields


def line_of(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """What :class:`JSONFormatter` makes of a record."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    logger = logging.Logger("tests.json")
    logger.addHandler(handler)
    logger.warning(*args, **kwargs)
    (text,) = stream.getvalue().splitlines()
    line: dict[str, Any] = json.loads(text)
    return line


def test_a_record_is_one_line_of_json() -> None:
    line = line_of("first\nsecond %d", 2, extra={"queue": "mail", "delivery_tag": 7})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line == {
        "level": "WARNING",
        "logger": "tests.json",
        "message": "first\nsecond 2",
        "queue": "mail",
        "delivery_tag": 7,
    }


def test_an_error_is_told_in_the_same_line() -> None:
    try:
        raise LookupError("no such user")
    except LookupError as exc:
        line = line_of("failed", exc_info=exc, stack_info=True)
    assert line["error"] == "builtins.LookupError"
    assert line["traceback"].endswith("LookupError: no such user")
    assert "test_an_error_is_told_in_the_same_line" in line["stack"]
    assert "error" not in line_of("failed", exc_info=sys.exc_info())  # there is none


def test_a_line_bears_what_is_no_json() -> None:
    line = line_of(
        "x", extra={"level": "mine", "message_id": b"\xff", "odd": Unwilling(), "a": {1: 2}}
    )
    assert line["level"] == "WARNING"
    assert line["message_id"] == "\ufffd"
    assert "Unwilling" in line["odd"]
    assert line["a"] == {"1": 2}


def test_what_is_not_known_of_a_message_is_left_out() -> None:
    message: Message[Any] = Message(delivery_tag=3, properties={"message_id": "m"})
    assert message_fields(message, queue="q", attempt=None) == {
        "queue": "q",
        "delivery_tag": 3,
        "message_id": "m",
    }


@pytest.mark.pure
def test_the_documentation_names_the_fields() -> None:
    page = (ROOT / "docs" / "observability.rst").read_text()
    table = page[page.index("field             ") :].partition("\n\n")[0]
    assert set(re.findall(r"^``(\w+)``", table, re.MULTILINE)) == FIELDS
