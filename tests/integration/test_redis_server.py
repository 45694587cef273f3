"""The password of a Redis is in no text."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest

from greenconn import Connection, publish
from greenconn.messaging import Consumer
from greenconn.pools import connections
from greenconn.worker import spawn_consumer
from tests.brokers.redis_server import RedisServer
from tests.integration.contract import SOON
from tests.integration.redis_clients import control
from tests.texts import MARK, MARKS, reprs, texts_of


def test_no_password_in_any_text(
    own_redis: RedisServer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    def fails(function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as exc:
            texts.extend(texts_of(exc))
        else:
            pytest.fail("it did not fail")

    login = f"app:{quote(MARK, safe='')}"
    url = own_redis.url.replace("//", f"//{login}@")
    with control(own_redis.url) as at_server:
        at_server("ACL", "SETUSER", "app", "on", f">{MARK}", f"~*{unique}*", "~_kombu*",
                  "~unacked*", "~greenconn*", "&*", "+@all", "-flushall")  # fmt: skip
    connection = Connection(url)
    consumer = Consumer(connection, connection.SimpleQueue(unique).queue)
    consumer.consume()
    spawned = spawn_consumer(unique, lambda body, message: None, connection=connection)
    assert spawned.wait_ready(SOON)
    publish(unique, "x", connection=connection, timeout=SOON)
    pool = connections[connection]
    with pool.acquire(block=True, timeout=SOON) as held:
        held.connect()
        texts.extend(reprs())
    texts += [repr(pool), repr(pool.stats()), repr(spawned.stats()), connection.as_uri()]
    fails(lambda: connection.clone(password=f"{MARK}-wrong").connect())
    fails(lambda: connection.clone(userid="nobody").connect())
    fails(lambda: connection.clone(port=9, connect_timeout=1).connect())
    fails(lambda: connection.clone(virtual_host="none").connect())
    fails(lambda: connection.clone(ssl=True, connect_timeout=1).connect())
    fails(lambda: connection.clone(transport_options={"lease": "x"}).connect())
    fails(lambda: Connection(f"{url}?nonsense=1"))
    fails(lambda: Connection(f"sentinel://{login}@127.0.0.1:9/0", connect_timeout=1).connect())
    own_redis.stop()
    fails(lambda: publish(unique, "x", connection=connection, timeout=0.2))
    texts.extend(reprs())
    own_redis.start()
    spawned.kill()
    with suppress(*connection.connection_errors):
        consumer.close()
    pool.force_close_all()
    connection.close()
    texts.append(caplog.text)
    texts.extend(repr(record.args) for record in caplog.records)
    assert sum("**@" in text for text in texts) > 20
    for text in texts:
        for mark in MARKS:
            assert mark not in text, text
