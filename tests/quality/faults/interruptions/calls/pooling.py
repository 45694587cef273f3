"""Pools of connections, channels and producers."""

# ruff: noqa: B023 - what is yielded runs before the loop goes on

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

from greenconn import pools
from greenconn.connection import Connection
from greenconn.exceptions import LimitExceeded
from greenconn.green.hub import yield_to_hub
from greenconn.messaging import Producer
from tests.fix_wires import until
from tests.quality.faults.interruptions.scene import SOON, Interruptible, Scene, call, ended

LIMIT = 2
FIRST_LIMIT = pools.get_limit()
Make = Callable[[Connection], Any]


def made_with(make: Make) -> Callable[[Scene], tuple[Connection, Any]]:
    """A template and a pool of it."""

    def made(scene: Scene) -> tuple[Connection, Any]:
        template = scene.connection(opened=False)
        pools.set_limit(LIMIT)
        return template, make(template)

    return made


MAKERS: dict[str, Make] = {
    "Connection.Pool": lambda template: template.Pool(LIMIT),
    "Connection.ChannelPool": lambda template: template.ChannelPool(LIMIT),
    "pools.connections": lambda template: pools.connections[template],
    "pools.producers": lambda template: pools.producers[template],
}


def reset() -> None:
    """Leave no pool behind.  May switch."""
    pools.reset()
    pools.set_limit(FIRST_LIMIT)


def use(resource: Any) -> None:
    """Do something with what was acquired.  May switch."""
    if isinstance(resource, Connection):
        resource.default_channel.basic_qos(0, 1, False)
    elif isinstance(resource, Producer):
        resource.publish("x", "nowhere")
    else:
        resource.basic_qos(0, 1, False)


def whole(scene: Scene, pool: Any) -> None:
    """All of its slots are free, and nobody waits.  May switch."""
    until(lambda: pool.stats()["in_use"] == 0)
    assert pool.stats()["waiting"] == 0
    limit = pool.limit
    held = [pool.acquire() for _ in range(limit)]
    with pytest.raises(LimitExceeded):
        pool.acquire()
    assert pool.stats()["in_use"] == limit
    for each in held:
        use(each)
        if isinstance(each, Connection) and each is held[0]:
            scene.whole(each)
        each.release()
    assert pool.stats()["in_use"] == 0


def acquiring(scene: Scene, make: Make, is_fresh: bool) -> Interruptible:
    """A slot that was taken comes back, whoever is interrupted."""
    _, pool = made_with(make)(scene)

    def acquire() -> None:
        with pool.acquire(block=True, timeout=SOON) as resource:
            use(resource)
            yield_to_hub()

    try:
        while True:
            ended((yield acquire))
            assert pool.stats()["in_use"] == 0
            whole(scene, pool)
            if is_fresh:
                pool.force_close_all(close_pool=False)
    finally:
        pool.force_close_all()
        reset()


def waiting(scene: Scene, make: Make) -> Interruptible:
    """One who waits gets a slot or leaves the line; it is never lost between two."""
    _, pool = made_with(make)(scene)
    held: list[Any] = []

    def give_back() -> None:
        while held:
            held.pop().release()

    def wait() -> None:
        gevent.spawn_later(0.0, give_back)
        pool.acquire(block=True, timeout=SOON).release()

    try:
        while True:
            held += [pool.acquire() for _ in range(pool.limit)]
            ended((yield wait))
            until(lambda: not held)
            whole(scene, pool)
    finally:
        give_back()
        pool.force_close_all()
        reset()


def closing(scene: Scene, make: Make) -> Interruptible:
    """However far it came: the next one ends it, and nothing stays open."""
    while True:
        _, pool = made_with(make)(scene)
        held = [pool.acquire() for _ in range(pool.limit)]
        for each in held:
            use(each)
        held.pop().release()
        try:
            ended((yield pool.force_close_all))
        finally:
            pool.force_close_all()
            reset()
        for each in held:
            each.release()


def resizing(scene: Scene, make: Make) -> Interruptible:
    """The limit is the old one or the new one, and it holds."""
    _, pool = made_with(make)(scene)
    first = pool.limit

    def resize() -> None:
        pool.resize(first + 1)
        pool.resize(first, force=True)

    try:
        while True:
            held = [pool.acquire() for _ in range(first)]
            for each in held:
                each.release()
            ended((yield resize))
            assert pool.limit in (first, first + 1)
            pool.resize(first, force=True)
            whole(scene, pool)
    finally:
        pool.force_close_all()
        reset()


def enter(name: str, make: Make) -> None:
    """Enter all calls of one kind of pool."""

    def entered(suffix: str, moments: Callable[..., Interruptible], *arguments: Any) -> None:
        def run(scene: Scene) -> Interruptible:
            yield from moments(scene, make, *arguments)

        call("pool", name + suffix)(run)

    entered(".acquire", acquiring, False)
    entered(".acquire, the first", acquiring, True)
    entered(".acquire, waiting", waiting)
    entered(".resize", resizing)
    entered(".force_close_all", closing)


for each, maker in MAKERS.items():
    enter(each, maker)


@call("pool", "Connection.Pool(preload=...)")
def preload(scene: Scene) -> Interruptible:
    template = scene.connection(opened=False)
    while True:
        made: list[Any] = []
        ended((yield lambda: made.append(template.Pool(LIMIT, preload=LIMIT))))
        for pool in made:
            whole(scene, pool)
            pool.force_close_all()
        until(lambda: not template.connected)


@call("pool", "pools.reset")
def resetting(scene: Scene) -> Interruptible:
    template = scene.connection(opened=False)
    while True:
        pools.set_limit(LIMIT)
        held = [pools.connections[template].acquire(), pools.producers[template].acquire()]
        for each in held:
            use(each)
        try:
            ended((yield pools.reset))
        finally:
            reset()
        assert not pools.connections
        assert not pools.producers
        for each in held:
            each.release()
        whole(scene, pools.connections[template])
        reset()
        scene.target.check()


@call("pool", "pools.set_limit")
def set_limit(scene: Scene) -> Interruptible:
    template, first = scene.connection(opened=False), LIMIT
    pools.set_limit(LIMIT)
    try:
        while True:
            for pool in (pools.connections[template], pools.producers[template]):
                with pool.acquire() as resource:
                    use(resource)

            def resize() -> None:
                pools.set_limit(first + 1, reset_after=True)

            ended((yield resize))
            pools.set_limit(first, force=True)
            assert pools.get_limit() == first
            whole(scene, pools.connections[template])
    finally:
        reset()
