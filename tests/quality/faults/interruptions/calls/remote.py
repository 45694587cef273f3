"""Remote procedure calls."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from typing import Any

import gevent

from greenconn import rpc
from greenconn.exceptions import RemoteError, Unroutable
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import SOON, Interruptible, Scene, call, ended, enter


def calling(scene: Scene, is_first: bool) -> Interruptible:
    """The reply to one that is gone reaches nobody else."""
    serving = scene.connection()
    queue = scene.queue(serving).name
    server = rpc.spawn_server(
        queue, lambda body: ["reply", body], connection=serving, concurrency=5
    )
    assert server.wait_ready(SOON)
    connection, number = scene.connection(), 0
    try:
        while True:
            number += 1
            run = yield lambda: rpc.call(queue, number, connection=connection, timeout=SOON)
            if ended(run):
                assert run.result == ["reply", number]
            greenlets = [
                gevent.spawn(rpc.call, queue, [number, each], connection=connection, timeout=SOON)
                for each in range(10)
            ]
            for each, greenlet in enumerate(greenlets):
                assert greenlet.get(timeout=SOON) == ["reply", [number, each]]
            scene.whole(connection)
            if is_first:
                connection.close()
    finally:
        server.stop(SOON)


enter("rpc", "rpc.call", calling, False)
enter("rpc", "rpc.call, the first", calling, True)


@call("rpc", "rpc.call that nobody serves")
def unserved(scene: Scene) -> Interruptible:
    connection = scene.connection()

    def use() -> None:
        try:
            rpc.call(f"{scene.name}-none", "x", connection=connection, timeout=SOON)
        except greenconn_errors:
            return
        raise AssertionError("somebody served it")

    greenconn_errors = (Unroutable,)
    while True:
        ended((yield use))
        scene.whole(connection)


@call("rpc", "rpc.call of a function that fails")
def failing(scene: Scene) -> Interruptible:
    serving = scene.connection()
    queue = scene.queue(serving).name

    def serve(body: Any) -> Any:
        if body == "bad":
            raise RemoteError("for test", remote_type="Bad")
        return body

    server = rpc.spawn_server(queue, serve, connection=serving)
    assert server.wait_ready(SOON)
    connection = scene.connection()

    def use() -> None:
        try:
            rpc.call(queue, "bad", connection=connection, timeout=SOON)
        except RemoteError:
            return
        raise AssertionError("it did not fail")

    try:
        while True:
            ended((yield use))
            assert rpc.call(queue, "good", connection=connection, timeout=SOON) == "good"
            scene.whole(connection)
    finally:
        server.stop(SOON)


@call("rpc", "rpc.spawn_server, wait_ready, stop")
def spawn_server(scene: Scene) -> Interruptible:
    connection = scene.connection()
    queue = scene.queue(connection).name
    made: list[Any] = []

    def use() -> None:
        made.append(rpc.spawn_server(queue, lambda body: body, connection=connection))
        assert made[-1].wait_ready(SOON)
        assert rpc.call(queue, "x", connection=connection, timeout=SOON) == "x"
        assert made[-1].stop(SOON)

    while True:
        run = yield use
        ended(run)
        server = made.pop()
        if run.was_interrupted:
            assert server.stop(SOON)
        until(lambda: scene.consumers(connection, queue) == 0)
        connection.default_channel.queue_purge(queue)  # a request that was not served
        use()
        made.clear()
        scene.whole(connection)
