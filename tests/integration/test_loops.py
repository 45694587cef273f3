"""The loops that ``GEVENT_LOOP`` chooses beside gevent's default one."""

from __future__ import annotations

import pytest

from tests.interpreter import printed

pytestmark = [pytest.mark.programs, pytest.mark.halved]

#: Publishes from many greenlets, handles all, forks, and does so once more.
PROGRAM = """
import gevent, os, sys
from gevent.event import Event
import gevent.os
import greenconn

url, name = sys.argv[1:]
seen = set()
came = Event()

def handle(body, message):
    seen.add(body)
    if len(seen) % 200 == 0:
        came.set()

def publish_all(first):
    came.clear()
    numbers = range(first, first + 200)
    gevent.joinall([gevent.spawn(greenconn.publish, name, each) for each in numbers], raise_error=True)
    assert came.wait(60), len(seen)

greenconn.configure(url)
consumer = greenconn.spawn_consumer(name, handle, prefetch_count=50, concurrency=4)
publish_all(0)
pid = gevent.os.fork()
if not pid:
    gevent.sleep(0.01)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
publish_all(200)
assert consumer.stop(60)
print(type(gevent.get_hub().loop).__module__, len(seen))
"""


@pytest.mark.parametrize("kind", ["memory", "amqp", "redis"])
@pytest.mark.parametrize("loop", ["libev.corecffi", "libuv.loop"])
def test_messages_come_over_any_loop(
    request: pytest.FixtureRequest, loop: str, kind: str, unique: str
) -> None:
    pytest.importorskip("gevent." + loop)
    url = "memory://" if kind == "memory" else request.getfixturevalue(f"{kind}_url")
    env = {"GEVENT_LOOP": loop.split(".")[0] + "-cffi"}
    assert printed("-c", PROGRAM, url, unique, env=env).split() == [f"gevent.{loop}", "400"]
