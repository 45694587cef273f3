"""``python -m benchmarks.bloat``: the size of PostgreSQL's tables under a steady load.

One process publishes at a fixed rate, whether or not the other one, which consumes, keeps up.  Each
interval is a row: what the tables take, what autovacuum has done, and how old the messages were when
their handler was called.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import gevent
import psycopg
from gevent.pool import Group

from benchmarks.boards import POSTGRESQL
from benchmarks.scale import aligned
from benchmarks.servers import broker
from greenconn import Connection, Queue, spawn_consumer

QUEUE: Final = "greenconn-bloat"
BODY: Final = "x" * 256
#: Seconds that the last messages may take.
TIMEOUT: Final = 120.0
#: What is shown of each row, and how.
HEADINGS: Final = {
    "seconds": ("seconds", ",.0f"),
    "consumed": ("consumed", ",.0f"),
    "waiting": ("waiting", ",.0f"),
    "p50_ms": ("p50 ms", ".1f"),
    "p99_ms": ("p99 ms", ".1f"),
    "table_kib": ("table KiB", ",.0f"),
    "indexes_kib": ("indexes KiB", ",.0f"),
    "largest_kib": ("largest index KiB", ",.0f"),
    "others_kib": ("other tables KiB", ",.0f"),
    "dead": ("dead rows", ",.0f"),
    "autovacuums": ("autovacuums", ",.0f"),
}
#: The sizes of all tables of the schema, in KiB, and what the statistics say of that of messages.
_SIZES: Final = """
SELECT json_build_object(
    'table_kib', pg_table_size(m) / 1024, 'indexes_kib', pg_indexes_size(m) / 1024,
    'largest_kib', (SELECT max(pg_relation_size(indexrelid)) / 1024 FROM pg_index WHERE indrelid = m),
    'others_kib', (SELECT sum(pg_total_relation_size(c.oid)) / 1024 FROM pg_class c
        JOIN pg_class t ON t.relnamespace = c.relnamespace
        WHERE t.oid = m AND c.relkind = 'r' AND c.oid <> m),
    'waiting', (SELECT count(*) FROM greenconn.messages),
    'dead', n_dead_tup, 'autovacuums', autovacuum_count)
FROM pg_stat_user_tables, CAST('greenconn.messages' AS regclass) AS m WHERE relid = m
"""


def main() -> int:
    """Measure for as long as the command line says, and print a table."""
    options = _arguments()
    if options.role == "publish":
        publish(options.url, options.rate, options.seconds)
    elif options.role == "consume":
        consume(options.url, options.interval)
    else:
        with broker(POSTGRESQL.name, options.url) as url:
            print("\n".join(aligned(measure(url, options), HEADINGS)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bloat", description=__doc__)
    parser.add_argument("--rate", type=int, default=1000, help="messages a second")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between two rows")
    parser.add_argument("--url", help="a PostgreSQL without a schema greenconn")
    parser.add_argument("--role", choices=("publish", "consume"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(url: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each interval, and one when all is consumed.

    Raises:
        AssertionError: messages were lost.
    """
    with Connection(url) as connection:
        Queue(QUEUE)(connection.default_channel).declare()
    rows: list[dict[str, Any]] = []
    began = monotonic()
    with (
        psycopg.connect(url, autocommit=True) as database,
        _process("consume", url, options) as consumer,
        _process("publish", url, options) as publisher,
    ):
        assert consumer.stdout is not None
        assert publisher.stdout is not None
        consumed = 0
        published: int | None = None
        for line in consumer.stdout:
            row = json.loads(line)
            found = database.execute(_SIZES).fetchone()
            assert found is not None
            consumed += row["count"]
            row.update(found[0], seconds=monotonic() - began, consumed=consumed)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if published is None and publisher.poll() is not None:
                published = int(publisher.stdout.read())
            if consumed == published:
                return rows
            late = monotonic() - began - options.seconds - options.interval
            assert late < TIMEOUT, f"{consumed} of {published} messages were consumed"
    raise AssertionError("the consumer ended")


@contextmanager
def _process(role: str, url: str, options: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bloat", "--role", role, "--url", url]
    command += ["--rate", str(options.rate), "--seconds", str(options.seconds)]
    command += ["--interval", str(options.interval)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def publish(url: str, rate: int, seconds: float) -> None:
    """Publish each message at its time, and print their number when all are stored.  May switch."""
    calls = Group()
    count = 0
    with Connection(url) as connection:
        producer = connection.Producer()

        def send(due: float) -> None:
            producer.publish({"due": due, "filling": BODY}, routing_key=QUEUE)

        began = monotonic()
        while (now := monotonic() - began) < seconds:
            while count < now * rate:
                calls.spawn(send, began + count / rate)
                count += 1
            gevent.sleep(began + count / rate - monotonic())
        calls.join(raise_error=True)
    print(count, flush=True)


def consume(url: str, interval: float) -> None:
    """Consume, and print what was seen in each interval.  May switch."""
    ages: list[float] = []

    def handle(body: Any, message: object) -> None:
        ages.append(monotonic() - body["due"])

    with Connection(url) as connection:
        spawn_consumer(QUEUE, handle, connection=connection, prefetch_count=100, passive=True)
        while True:
            gevent.sleep(interval)
            seen = sorted(ages)
            ages.clear()
            row: dict[str, float] = {"count": len(seen)}
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                row[name] = seen[int(len(seen) * share)] * 1e3 if seen else 0.0
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
