"""The standard input and output of commands, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import time

import gevent
import pytest

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
