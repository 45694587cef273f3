"""The stacks of a program's greenlets, asked for by a signal."""

from __future__ import annotations

import contextlib
import signal
import sys
from types import FrameType

from gevent.util import print_run_info

SIGNAL = signal.SIGUSR2


def print_on_signal() -> None:
    """Print the stacks of all greenlets to standard error at each :data:`SIGNAL`.

    It does nothing in a thread that is not the main one, which can handle no signals.
    """
    with contextlib.suppress(ValueError):
        signal.signal(SIGNAL, _print_stacks)


def _print_stacks(number: int, frame: FrameType | None) -> None:
    print_run_info(file=sys.stderr)
    sys.stderr.flush()
