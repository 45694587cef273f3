"""Actors that tell over a list in a file what they have done."""

from __future__ import annotations

import os
import time
from typing import Any

import dramatiq
import dramatiq.results
from dramatiq.results.backends import RedisBackend

from greenconn.contrib import dramatiq as brokers

#: It has no types.
make_results: Any = dramatiq.results.Results
kind = os.environ["ACTORS_BROKER"]
broker: brokers.GreenconnBroker = getattr(brokers, kind)(url=os.environ["ACTORS_URL"])
dramatiq.set_broker(broker)
if kind == "RedisBroker":
    broker.add_middleware(make_results(backend=RedisBackend(client=broker.client)))
QUEUE = os.environ["ACTORS_QUEUE"]
DONE = os.environ["ACTORS_DONE"]
RESULTS: dict[str, Any] = {"store_results": True} if kind == "RedisBroker" else {}


def note(*words: Any) -> None:
    """Append a line: a process that is killed writes it whole, or not at all."""
    with open(DONE, "a") as done:
        done.write(" ".join(map(str, words)) + "\n")


@dramatiq.actor(queue_name=QUEUE)
def work(number: int, seconds: float = 0.0) -> None:
    """Wait, and note *number*."""
    note("begun", number, os.getpid())
    time.sleep(seconds)
    note("done", number, os.getpid())


@dramatiq.actor(queue_name=QUEUE, **RESULTS)
def double(number: int) -> int:
    """Return the double of *number*, and note that."""
    note("done", 2 * number, os.getpid())
    return 2 * number


@dramatiq.actor(queue_name=QUEUE, max_retries=2, min_backoff=100, max_backoff=100)
def fail(number: int) -> None:
    """Note *number*, and fail."""
    note("failed", number)
    raise ValueError(number)
