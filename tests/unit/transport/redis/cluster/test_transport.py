"""URLs of a Redis Cluster."""

from __future__ import annotations

import pytest

from greenconn import Connection
from greenconn.transport.redis import ClusterTransport
from tests.fix_redis_nodes import ClusterLinks, ScriptedCluster


def transport_of(connection: Connection) -> ClusterTransport:
    """Return the transport of a connection."""
    transport = connection.transport
    assert isinstance(transport, ClusterTransport)
    return transport


def test_all_nodes_of_a_url_are_seeds() -> None:
    """A node that is named without a port, or twice, is asked once, at the usual port."""
    url = "redis+cluster://one:7000;redis+cluster://other;redis+cluster://one:7000"
    seeds = transport_of(Connection(url)).seeds()
    assert [(each.host, each.port) for each in seeds] == [("one", 7000), ("other", 6379)]
    assert {each.where for each in seeds} == {"redis+cluster://one:7000//"}


def test_a_seed_that_is_away_is_passed_over(cluster: ScriptedCluster) -> None:
    dead, alive = cluster.nodes
    cluster.serve_all(alive)
    dead.peer.stop()
    url = ";".join(f"redis+cluster://{host}:{port}" for host, port in (dead.place, alive.place))
    with Connection(url) as connection:
        connection.connect()
        assert connection.connected


def test_a_cluster_has_one_database() -> None:
    with pytest.raises(ValueError, match="only database 0, got 3"):
        Connection("redis+cluster://one:7000/3").connect()


def test_the_client_of_one_server_is_refused(cluster_links: ClusterLinks) -> None:
    channel = cluster_links().connection.channel()
    with pytest.raises(NotImplementedError, match=r"redis\.cluster\.RedisCluster"):
        _ = channel.client
