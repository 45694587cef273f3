"""Ten thousand greenlets share a pool of four connections: ``python shared_pool.py [URL]``."""

from __future__ import annotations

import sys
from time import monotonic

import gevent

from greenconn import Connection, Queue, uuid
from greenconn.connection import ConnectionPool

GREENLETS = 10_000
CONNECTIONS = 4


def publish(pool: ConnectionPool, queue: Queue, number: int) -> None:
    """Acquire a connection, publish, and release it."""
    with pool.acquire(block=True, timeout=60) as connection:
        connection.Producer().publish({"number": number}, routing_key=queue.name)


def main(url: str = "memory://") -> None:
    queue = Queue(f"example-{uuid()[:8]}", expires=60)
    # Confirmed: the broker has each message when its publish returns.
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        bound = queue(connection)
        bound.declare()
        pool = connection.Pool(CONNECTIONS)
        began = monotonic()
        greenlets = [gevent.spawn(publish, pool, queue, number) for number in range(GREENLETS)]
        gevent.joinall(greenlets, raise_error=True)
        print(f"{GREENLETS} greenlets published in {monotonic() - began:.1f} s")
        print(f"the pool: {pool.stats()}")
        pool.force_close_all()
        found = bound.purge()
        bound.delete()
    print(f"{found} messages over {CONNECTIONS} connections of {connection.as_uri()}")
    if found != GREENLETS:
        raise SystemExit("messages are missing")


if __name__ == "__main__":
    main(*sys.argv[1:2])
