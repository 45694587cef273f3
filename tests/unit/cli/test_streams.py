"""The standard input and output of commands, and Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
import time

import gevent
import pytest

import greenconn
from greenconn.cli import main
from greenconn.cli.broker import interruptible


def interrupt_soon() -> None:
    """Send this process a SIGINT."""
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_interrupts_the_caller_while_it_waits() -> None:
    def spoilt() -> None:
        interrupt_soon()
        for _ in range(3):
            gevent.sleep(0.01)
        done.append(True)

    done: list[bool] = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        worker = gevent.spawn(spoilt)
        gevent.sleep(10)
    worker.get(timeout=10)
    assert done, "it hit the greenlet that happened to run"


def test_ctrl_c_interrupts_the_caller_while_it_runs() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        interrupt_soon()
        time.sleep(0.01)


def test_ctrl_c_is_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_characters_that_the_terminal_does_not_have_are_escaped(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    with greenconn.Connection(url) as connection:
        greenconn.publish("q", "gr\u00fc\u00df \U0001f600", connection=connection, declare=True)
        assert main(["peek", "q", "--url", url]) == 0
    assert "gr\u00fc\u00df \\U0001f600" in written.getvalue().decode("latin-1")
