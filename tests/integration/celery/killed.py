"""A Celery client, not patched, whose connections and whose worker's are killed by the Redis server.

Prints as JSON whether its worker answered before, what the first task after that became, and whether the
worker answered again.
"""

from __future__ import annotations

import json
import os
import sys
from time import monotonic
from typing import Any

import redis

from tests.integration.celery.app import add, app

#: Seconds that the worker has for being back: less than a lease.
WITHIN = 20.0


def kill(server: redis.Redis, process: int) -> int:
    """Kill the connections of a process, and return how many there were."""
    mine = [each for each in server.client_list() if each["name"].endswith(f":{process}")]
    for each in mine:
        server.client_kill_filter(_id=each["id"])
    return len(mine)


def ping() -> Any:
    """What the worker answered to a ping; nothing within a second is []."""
    return [list(each.values()) for each in app.control.ping(timeout=1, limit=1)]


worker = int(sys.argv[1])
with redis.Redis.from_url(os.environ["BROKER"]) as server:
    before = ping()
    assert kill(server, os.getpid())
    sent = add.delay(2, 3).get(timeout=WITHIN)
    assert kill(server, worker)
    end = monotonic() + WITHIN
    while not (after := ping()) and monotonic() < end:
        pass
print(json.dumps([before, sent, after]))
