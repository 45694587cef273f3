"""Logging in kombu's way."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import pytest

from greenconn import log
from greenconn.caching import lazy
from greenconn.log import LOG_LEVELS, Log, LogMixin, get_logger, get_loglevel, setup_logging


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


def test_library_loggers_have_no_handler() -> None:
    assert logging.getLogger("greenconn").handlers == []
    assert logging.getLogger("greenconn.serialization").handlers == []


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


def test_without_tracebacks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "DISABLE_TRACEBACKS", True)
    Worker().error("x", exc_info=KeyError("y"))
    assert caplog.records[0].exc_info is None


def test_lazy_values_are_not_computed_in_vain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Worker().debug("%s", lazy(pytest.fail, "computed"))


def test_is_enabled_for() -> None:
    worker = Worker()
    worker.logger = logging.Logger("tests.own", level=logging.INFO)
    assert worker.is_enabled_for("INFO")
    assert not worker.is_enabled_for(logging.DEBUG)
    assert worker.get_loglevel("ERROR") == worker.get_loglevel(40) == 40
    with pytest.raises(KeyError):
        worker.get_loglevel("LOUD")


def test_names() -> None:
    class Named(LogMixin):
        pass

    assert Named().logger_name == "Named"
    assert Named().logger is logging.getLogger("Named")
    assert Log("tests.named").logger is logging.getLogger("tests.named")
    own = logging.Logger("own")
    assert Log("tests.named", logger=own).get_logger() is own
    assert Log("tests.named").annotate("x") == "tests.named - x"


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


def test_setup_logging_to_standard_error() -> None:
    with bare_root() as root:
        setup_logging()
        (handler,) = root.handlers
        assert isinstance(handler, logging.StreamHandler)
