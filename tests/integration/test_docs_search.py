"""What a user types into the search of the documentation finds the page that is meant."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.brokers.packages import NoBroker, find_node
from tests.unit.test_docs import ROOT

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(600)]

#: Page -> what leads to it, among the first :data:`RANK` pages.
SEARCHES = {
    "guide": (
        "ttl",
        "dead letter",
        "retry",
        "backoff",
        "delay",
        "timeout",
        "unroutable",
        "rpc",
        "monkey patch",
        "thread",
        "reconnect",
    ),
    "rabbitmq": ("expiration", "priority", "quorum", "stream", "cluster", "heartbeat"),
    "applications": ("schedule", "cron"),
    "guarantees": ("ack", "prefetch", "exactly once", "duplicates", "publish confirm"),
    "middleware": ("idempotent", "ordering", "rate limit", "unique", "encryption"),
    "redis": ("sentinel", "lease"),
    "postgresql": ("postgres", "sqlite"),
    "other-brokers": ("sqs", "mongodb", "beanstalk"),
    "transactions": ("transaction", "outbox"),
    "bodies": ("pydantic", "json"),
    "testing": ("testing", "pytest", "mock"),
    "gunicorn": ("gunicorn", "flask", "uwsgi", "graceful shutdown"),
    "django": ("django",),
    "integrations": ("celery", "dramatiq", "socketio"),
    "transports": ("choosing a broker", "compare brokers"),
    "running": ("systemd",),
    "kubernetes": ("kubernetes", "docker"),
    "recipes": ("sigterm", "fanout", "broadcast"),
    "observability": ("prometheus", "opentelemetry", "logging"),
    "security": ("tls", "password"),
    "moving": ("asyncio", "pika", "kombu", "eventlet", "pool"),
    "troubleshooting": ("connection refused", "memory leak"),
    "console": ("dashboard",),
    "benchmarks": ("benchmark",),
}
RANK = 3
Search = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """Return the pages that a search finds, the best first."""
    for each in ("sphinx", "furo"):
        pytest.importorskip(each)
    folder = tmp_path_factory.mktemp("search")
    try:
        node = find_node(folder)
    except NoBroker as exc:
        pytest.skip(str(exc))
    site = folder / "site"
    build = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "docs", str(site)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=300)
    script = Path(__file__).with_name("docs_search.js")
    texts = [text for each in SEARCHES.values() for text in each]
    done = subprocess.run(
        [str(node.server), str(script), str(site), *texts],
        capture_output=True,
        text=True,
        timeout=60,
        env=node.libraries() or None,
        check=True,
    )
    found = dict(zip(texts, json.loads(done.stdout), strict=True))
    return found.__getitem__


@pytest.mark.parametrize(
    ("page", "text"), [(page, text) for page, texts in SEARCHES.items() for text in texts]
)
def test_page_is_found(search: Search, page: str, text: str) -> None:
    assert page in search(text)[:RANK]
