"""Flower: its API, its pages and its end, with a gevent worker, on RabbitMQ and on Redis."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from gevent import sleep

from tests.brokers.ports import free_ports
from tests.quality.thirdparty.environments import environment
from tests.quality.thirdparty.parts import CONTRIB, Outcome, Program, Site

REQUIREMENTS = ("gevent", "hiredis", "flower", "celery[redis]==5.7.0")
CELERY = ("-W", "ignore", "-m", "celery", "-A", "tests.quality.thirdparty.flower_app")
TRANSPORTS = {"amqp": "AmqpTransport", "redis": "RedisTransport"}
WORKER = "worker@flower"
#: Tasks that are sent by the API.
TASKS = 50
STEP = 0.2


def run(way: str, site: Site, timeout: float) -> Outcome:
    """Start a worker and Flower on each broker, and ask Flower for what it shows.

    Raises:
        NotInstalled: Flower cannot be had.
        TooLong: a process did not begin within *timeout* seconds.
    """
    python = str(environment("flower", REQUIREMENTS))
    results: dict[str, bool] = {}
    for broker, url in (("amqp", site.rabbitmq.url), ("redis", site.redis.url_of(1))):
        env = {"BROKER": url, "RESULTS": site.redis.url_of(2), "FLOWER_UNAUTHENTICATED_API": "1"}
        if way == CONTRIB:
            env["TRANSPORT"] = f"greenconn.contrib.celery:{TRANSPORTS[broker]}"
        (port,) = free_ports(1)
        worker_command = [python, *CELERY, "worker", "-P", "gevent", "-n", WORKER, "-l", "info"]
        command = [python, *CELERY, "flower", "--address=127.0.0.1", f"--port={port}"]
        with (
            site.program(f"flower-worker-{way}-{broker}", worker_command, env) as worker,
            site.program(f"flower-{way}-{broker}", command, env) as flower,
        ):
            worker.wait_line("worker is ready", timeout)
            for name, check in _checks(f"http://127.0.0.1:{port}", worker, flower):
                results[f"{broker}: {name}"] = _holds(check, timeout / 10)
    failed = frozenset(name for name, holds in results.items() if not holds)
    return Outcome(passed=len(results) - len(failed), count=len(results), failed=failed)


def _checks(
    address: str, worker: Program, flower: Program
) -> Iterator[tuple[str, Callable[[], bool]]]:
    def get(path: str, **query: str) -> Any:
        return _ask(f"{address}{path}?{urlencode(query)}")

    def post(path: str, body: Any = None, **query: str) -> Any:
        return _ask(f"{address}{path}?{urlencode(query)}", json.dumps(body or {}).encode())

    def send() -> str:
        return str(post("/api/task/async-apply/add", {"args": [1, 2]})["task-id"])

    sent: list[str] = []

    def are_sent(count: int) -> bool:
        sent.extend(send() for _ in range(count))
        return True

    yield (
        "a refresh asks the worker",
        lambda: "stats" in get("/api/workers", refresh="1", workername=WORKER)[WORKER],
    )
    yield "the worker is listed", lambda: WORKER in get("/api/workers")
    yield "a task is sent", lambda: are_sent(1)
    yield "its result", lambda: get(f"/api/task/result/{sent[0]}")["result"] == 3
    yield "its events", lambda: get(f"/api/task/info/{sent[0]}")["state"] == "SUCCESS"
    yield "a task is run", lambda: post("/api/task/apply/add", {"args": [1, 2]})["result"] == 3
    yield f"{TASKS} tasks are sent", lambda: are_sent(TASKS)
    yield (
        "the events of all",
        lambda: set(sent) <= get("/api/tasks", state="SUCCESS", limit="1000").keys(),
    )
    yield "the pool grows", lambda: "message" in post(f"/api/worker/pool/grow/{WORKER}", n="1")
    yield "a task is revoked", lambda: "message" in post(f"/api/task/revoke/{sent[0]}")
    yield (
        "a queue is added",
        lambda: "message" in post(f"/api/worker/queue/add-consumer/{WORKER}", queue="flower-more"),
    )
    yield "lengths of queues", lambda: "active_queues" in get("/api/queues/length")
    for page in ("/workers", f"/worker/{WORKER}", "/tasks", "/broker", "/metrics"):
        yield f"page {page}", lambda page=page: bool(get(page))  # type: ignore[misc]
    flower.signal(signal.SIGTERM)
    yield "Flower ends by SIGTERM", lambda: flower.process.poll() is not None
    worker.signal(signal.SIGTERM)
    yield "the worker ends by SIGTERM", lambda: worker.process.poll() == 0


def _ask(url: str, body: bytes | None = None) -> Any:
    """Return what a page has: its JSON, or its text."""
    with urlopen(Request(url, body), timeout=30) as answer:
        text = answer.read().decode()
    return json.loads(text) if answer.headers.get_content_subtype() == "json" else text


def _holds(check: Callable[[], bool], timeout: float) -> bool:
    """Return whether *check* becomes true within *timeout* seconds; errors of the server are a no."""
    end = time.monotonic() + timeout
    while True:
        try:
            if check():
                return True
        except (HTTPError, URLError, OSError, KeyError, TypeError, IndexError, ValueError):
            pass
        if time.monotonic() >= end:
            return False
        sleep(STEP)
