"""Notifications: what falls due is swept, however late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gevent import monkey
from gevent.event import Event

from greenconn.transport.mongodb.changes import Notifications

SOON = 30.0
#: Of the process, in a patched one too.
_sleep: Any = monkey.get_original("time", "sleep")


def test_what_fell_due_while_the_process_stood_still_is_swept() -> None:
    swept: list[bool] = []
    is_swept = Event()

    def sweep(is_claiming: bool) -> float | None:
        swept.append(is_claiming)
        if len(swept) == 2:
            is_swept.set()
            return None
        return 0.05

    client: Any = SimpleNamespace(is_set=False, where="mongodb://h", is_polling_logged=False)
    notifications = Notifications(client, "messages", None, lambda queue: None, sweep)
    notifications.expect(0.02)
    _sleep(0.1)
    try:
        assert is_swept.wait(SOON)  # it also sweeps what the first sweep says is due next
    finally:
        notifications.stop()
