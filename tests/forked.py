"""A child of this process, for tests of what a fork leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gevent import monkey


def holds_in_child(check: Callable[[], Any]) -> bool:
    """Whether *check* is true in a child of this process, which ends without any clean-up.

    The child is waited for without the hub: gevent begins to watch the first child of a process
    only after the fork, and may miss one that ends at once.
    """
    fork: Any = monkey.get_original("os", "fork")
    waitpid: Any = monkey.get_original("os", "waitpid")
    pid = fork()
    if not pid:
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(waitpid(pid, 0)[1]) == 0
