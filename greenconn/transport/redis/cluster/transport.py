"""The transport of Redis Cluster, and its channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from greenconn.green.deadline import Deadline
from greenconn.transport.redis.cluster.placement import ClusterPlacement
from greenconn.transport.redis.placement import Placement
from greenconn.transport.redis.server import Address
from greenconn.transport.redis.transport import Channel, Transport
from greenconn.url import BrokerURL

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink


class ClusterChannel(Channel):
    """A channel to a cluster."""

    @property
    def client(self) -> NoReturn:
        """Not available: kombu has no cluster whose client programs could expect.

        Raises:
            NotImplementedError: always; names the remedy.
        """
        raise NotImplementedError(
            "channel.client is not available on a Redis Cluster: make a redis.cluster.RedisCluster of "
            "your own, and call it in gevent's threadpool unless the process is monkey-patched"
        )


class ClusterTransport(Transport):
    """``redis+cluster://host:6379;redis+cluster://other:6379``: a Redis Cluster.

    Any of its nodes will do; all that are named are asked until one answers.
    """

    Channel = ClusterChannel
    inner_schemes = frozenset()

    def _resolve(self, deadline: Deadline) -> Address:
        return self.seeds()[0]

    def _place(self) -> str:
        places = sorted(f"{each.host}:{each.port}" for each in self.seeds())
        return f"cluster/{','.join(places)}"

    def seeds(self) -> list[Address]:
        """Return the nodes that the URL names, the one that is meant now in front."""
        client = self.client
        urls = [BrokerURL.parse(each) for each in getattr(client, "alt", None) or ()]
        places = [(client.hostname or "localhost", int(client.port or self.default_port))]
        places += [(each.hostname or "localhost", each.port or self.default_port) for each in urls]
        return [
            Address(
                host=host,
                port=port,
                ssl=client.ssl,
                where=client.as_uri(),
                settings=self.options.socket_keepalive_options,
            )
            for host, port in dict.fromkeys(places)
        ]

    def placement(self, link: RedisLink) -> Placement:
        """Return where the keys of a new link are."""
        login = self.server.login
        return ClusterPlacement(link, self.seeds(), login, self.connect_timeout)

    def _database(self) -> int:
        """Return 0: a cluster has one database.

        Raises:
            ValueError: another one is asked for.
        """
        number = super()._database()
        if number:
            raise ValueError(f"{self.client.as_uri()}: a cluster has only database 0, got {number}")
        return number
