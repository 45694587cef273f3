"""The birth and the end of the library's greenlets."""

from __future__ import annotations

import logging

import gevent
import pytest

from greenconn.green.supervisor import spawn
from tests.fix_leaks import HubErrors


def test_a_greenlet_has_a_name_and_its_function_gets_the_arguments() -> None:
    greenlet = spawn("adder", lambda a, *, b: a + b, 2, b=3)
    assert greenlet.name == "greenconn:adder"
    assert greenlet.get(timeout=5) == 5


def test_an_error_is_logged_once_and_ends_the_greenlet(
    caplog: pytest.LogCaptureFixture, hub_errors: HubErrors, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise LookupError("nothing there")

    with caplog.at_level(logging.DEBUG):
        greenlet = spawn("failer", fail)
        greenlet.join(5)
    assert greenlet.dead
    assert [record.name for record in caplog.records] == ["greenconn.green"]
    assert caplog.records[0].levelno == logging.ERROR
    assert "failer" in caplog.text
    assert "nothing there" in caplog.text
    assert not hub_errors
    assert not capsys.readouterr().err


def test_being_killed_is_an_ordinary_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        before = spawn("before", gevent.sleep, 10)
        before.kill()
        during = spawn("during", gevent.sleep, 10)
        gevent.sleep(0)
        during.kill()
    assert before.dead
    assert during.dead
    assert not caplog.records


def test_what_is_no_error_reaches_the_hub(hub_errors: HubErrors) -> None:
    timeout = gevent.Timeout(None)

    def expire() -> None:
        raise timeout

    greenlet = spawn("expired", expire)
    greenlet.join(5)
    assert greenlet.exception is timeout
    assert [error.value for error in hub_errors] == [timeout]
    hub_errors.clear()
