"""Answers of RabbitMQ that come at an unlucky moment: while a caller gives up, or with a loss."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.exceptions import RecoverableConnectionError
from tests.fix_wires import until

CAME = 20.0


@pytest.mark.parametrize("nowait", [False, True])
def test_one_that_is_about_to_start(amqp_url: str, unique: str, nowait: bool) -> None:
    with Connection(amqp_url) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, exclusive=True, auto_delete=False)
        for number in range(30):
            tag = f"tag-{number}"
            both: list[gevent.Greenlet[..., Any]] = [
                gevent.spawn(channel.basic_consume, unique, tag),
                gevent.spawn(channel.basic_cancel, tag, nowait=nowait),
            ]
            gevent.joinall(both, timeout=CAME, raise_error=True)
        assert channel.queue_declare(unique, passive=True).consumer_count == 0
        assert connection.session.generation == 1


def test_one_whose_caller_was_killed(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, exclusive=True, auto_delete=False)
        for number in range(30):
            tag = f"tag-{number}"
            starting = gevent.spawn(channel.basic_consume, unique, tag)
            gevent.sleep(0)
            starting.kill(block=False)
            channel.basic_cancel(tag)
            channel.basic_qos(0, 1, False)  # its answer overtakes that of the consumer's queue
        channel.queue_purge(unique)
        until(lambda: channel.queue_declare(unique, passive=True).consumer_count == 0)
        assert connection.session.generation == 1


def test_one_whose_channel_is_closed_meanwhile(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, exclusive=True, auto_delete=False)
        starting: gevent.Greenlet[..., Any] = gevent.spawn(channel.basic_consume, unique, "tag")
        cancelling: gevent.Greenlet[..., Any] = gevent.spawn(channel.basic_cancel, "tag")
        gevent.sleep(0)
        channel.close()
        gevent.joinall([starting, cancelling], timeout=CAME)
        assert cancelling.successful()
        assert connection.session.generation == 1
        with pytest.raises(Exception, match="closed"):
            starting.get()


def test_a_channel_whose_connection_is_lost_behind_the_answer_is_not_open(amqp_url: str) -> None:
    with Connection(amqp_url) as connection:
        connection.connect()
        link = connection.session.life.link
        opening: gevent.Greenlet[..., Any] = gevent.spawn(link.channel)
        gevent.sleep(0)
        channel = next(each for each in link.channels.values() if each is not link)
        # Told of the answer and of the loss in one turn of the hub, as from one packet.
        channel.on_method(20 << 16 | 11, b"\0\x14\0\x0b\0\0\0\0", None, None)
        link.end(RecoverableConnectionError("lost"))
        opening.join(CAME)
        assert not channel.is_open
        with pytest.raises(RecoverableConnectionError):
            opening.get()
