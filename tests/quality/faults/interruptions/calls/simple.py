"""``SimpleQueue`` and ``SimpleBuffer``."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from greenconn.connection import Connection
from greenconn.simple import SimpleBuffer, SimpleQueue
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import SOON, Interruptible, Scene, call, ended


def simple_queue(scene: Scene, connection: Connection) -> Any:
    """A simple queue."""
    return SimpleQueue(connection, scene.name)


def simple_buffer(scene: Scene, connection: Connection) -> Any:
    """One that keeps nothing."""
    return SimpleBuffer(connection, scene.name)


MAKERS = {"SimpleQueue": simple_queue, "SimpleBuffer": simple_buffer}
Make = Callable[[Scene, Connection], Any]


def settle(simple: Any, message: Any) -> None:
    """Ack a message that needs it."""
    if not simple.no_ack:
        message.ack()


def get_nowait(simple: Any) -> None:
    """Take a message if one is there.  May switch."""
    with suppress(simple.Empty):  # it may be on its way to the consumer
        settle(simple, simple.get_nowait())


def bodies_up_to(simple: Any, last: Any) -> list[Any]:
    """Take all up to *last*.  May switch."""
    bodies: list[Any] = []
    while last not in bodies:
        message = simple.get(timeout=SOON)
        bodies.append(message.payload)
        settle(simple, message)
    return bodies


def making(scene: Scene, make: Make) -> Interruptible:
    connection = scene.connection()
    while True:
        run = yield lambda: make(scene, connection)
        if ended(run):
            run.result.close()
        simple = make(scene, connection)
        simple.put("x")
        assert bodies_up_to(simple, "x") == ["x"]
        simple.close()
        scene.whole(connection)


def putting(scene: Scene, make: Make) -> Interruptible:
    connection, number = scene.connection(), 0
    simple = make(scene, connection)
    while True:
        number += 1
        was_put = ended((yield lambda: simple.put(number)))
        simple.put("after")
        bodies = bodies_up_to(simple, "after")
        assert bodies in ([number, "after"], ["after"])
        assert not was_put or bodies[0] == number
        scene.whole(connection)


def getting(scene: Scene, make: Make, is_fresh: bool) -> Interruptible:
    """A message on its way to one who is interrupted goes to the next."""
    connection = scene.connection()
    simple = make(scene, connection)
    while True:
        simple.put("one")
        run = yield lambda: simple.get(timeout=SOON)
        if ended(run):
            assert run.result.payload == "one"
            if not simple.no_ack:
                run.result.requeue()
        if run.raised is not None or not simple.no_ack:
            message = simple.get(timeout=SOON)
            assert message.payload == "one"
            settle(simple, message)
        scene.whole(connection)
        if is_fresh:
            simple.close()
            simple = make(scene, connection)


def using(scene: Scene, make: Make, use: Callable[[Any], Any]) -> Interruptible:
    connection = scene.connection()
    simple = make(scene, connection)
    while True:
        simple.put("x")
        ended((yield lambda: use(simple)))
        # What was on its way to the one who was interrupted comes back, perhaps behind the first purge.
        until(lambda: not simple.clear() and simple.qsize() == 0)
        simple.put("y")
        assert bodies_up_to(simple, "y")[-1] == "y"
        scene.whole(connection)


def closing(scene: Scene, make: Make) -> Interruptible:
    connection = scene.connection()
    while True:
        simple = make(scene, connection)
        simple.put("x")
        assert bodies_up_to(simple, "x")[-1] == "x"
        ended((yield simple.close))
        simple.close()
        make(scene, connection).close()  # a buffer's queue went with its consumer
        until(lambda: scene.consumers(connection, scene.name) == 0)
        assert not connection.session._members._all
        scene.whole(connection)


def enter(name: str, make: Make) -> None:
    """Enter all calls of one class."""

    def entered(suffix: str, moments: Callable[..., Interruptible], *arguments: Any) -> None:
        def run(scene: Scene) -> Interruptible:
            scene.delete_in_the_end(scene.name)
            yield from moments(scene, make, *arguments)

        call("simple", name + suffix)(run)

    entered("()", making)
    entered(".put", putting)
    entered(".get", getting, False)
    entered(".get, the first", getting, True)
    entered(".get_nowait", using, get_nowait)
    entered(".clear", using, lambda simple: simple.clear())
    entered(".qsize", using, lambda simple: simple.qsize())
    entered(".close", closing)


for each, maker in MAKERS.items():
    enter(each, maker)
