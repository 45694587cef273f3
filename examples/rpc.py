"""Call a function in another process: ``python examples/rpc.py [URL]``."""

from __future__ import annotations

import logging
import sys

import gevent

from greenconn import Connection, rpc, uuid
from greenconn.exceptions import RemoteError


def divide(numbers: list[float]) -> float:
    """What the server does; it might as well run on another machine."""
    first, second = numbers
    return first / second


def main(url: str = "memory://") -> None:
    queue = f"example-{uuid()[:8]}"
    logging.getLogger("greenconn.rpc").setLevel(logging.CRITICAL)  # the failure below is expected
    with Connection(url) as connection:
        server = rpc.spawn_server(queue, divide, connection=connection, concurrency=10)
        server.wait_ready(timeout=10)

        def call(number: int) -> float:
            result: float = rpc.call(queue, [number, 2], connection=connection, timeout=10)
            return result

        calls = [gevent.spawn(call, number) for number in range(100)]
        gevent.joinall(calls, raise_error=True)
        assert [each.value for each in calls] == [number / 2 for number in range(100)]
        print(f"100 calls at once over {connection.as_uri()}: each got its own reply")
        try:
            rpc.call(queue, [1, 0], connection=connection, timeout=10)
        except RemoteError as exc:
            print(f"what the server raises is raised here: {exc}")
        server.stop(timeout=10)
        connection.default_channel.queue_delete(queue)


if __name__ == "__main__":
    main(*sys.argv[1:2])
