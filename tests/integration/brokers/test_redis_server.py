"""The private Redis does what the tests ask of it."""

from __future__ import annotations

from gevent import socket

from tests.brokers.redis_server import RedisServer


def pings(broker: RedisServer, timeout: float = 30.0) -> bool:
    """Whether it answers PING."""
    try:
        with socket.create_connection(("127.0.0.1", broker.port), timeout=timeout) as client:
            client.sendall(b"PING\r\n")
            return client.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def test_it_stops_and_starts(own_redis: RedisServer) -> None:
    assert pings(own_redis)
    for end in (own_redis.stop, own_redis.kill):
        end()
        assert not own_redis.is_running
        assert not pings(own_redis)
        own_redis.start()
        assert pings(own_redis)


def test_a_paused_one_is_silent(own_redis: RedisServer) -> None:
    own_redis.pause()
    assert not pings(own_redis, timeout=0.3)
    own_redis.resume()
    assert pings(own_redis)
