"""A RabbitMQ cluster of one's own: nodes on the loopback interface."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from tests.brokers.epmd import Epmd
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import CTL_TIMEOUT, RabbitMQ

NODES = 3
#: Milliseconds for members of queues to come back.
QUORUM_TIMEOUT_MS = 60_000


class RabbitMQCluster:
    """Nodes that this process owns, each with a port, a name and data of its own.

    Arguments:
        keeper: ends them, whatever becomes of this process.
        size: the number of nodes.

    Attributes:
        nodes: the nodes; the first one began the cluster.

    Raises:
        NoBroker: the programs are not to be had.
    """

    def __init__(self, keeper: Keeper, size: int = NODES) -> None:
        self._epmd = Epmd(keeper)
        cookie = secrets.token_hex(16)
        self.nodes: list[RabbitMQ] = []
        for _ in range(size):
            seed = self.nodes[0].name if self.nodes else None
            node = RabbitMQ(keeper, epmd=self._epmd, cookie=cookie, joins=seed)
            self.nodes.append(node)

    def __iter__(self) -> Iterator[RabbitMQ]:
        return iter(self.nodes)

    @property
    def url(self) -> str:
        """The addresses of all nodes, as a failover list."""
        return ";".join(node.url for node in self.nodes)

    def start(self) -> None:
        """Start all nodes, and wait until they are one cluster.  May switch.

        Raises:
            NoBroker: a node did not start.
        """
        first, *others = self.nodes
        first.start()
        for node in others:
            node.begin()
        for node in others:
            node.wait_ready()

    def running(self, node: RabbitMQ) -> int:
        """Return the number of nodes that a *node* is connected with, itself included.  May switch."""
        return int(node.evaluate("length(nodes())")) + 1

    def await_quorum(self, node: RabbitMQ) -> None:
        """Wait until all quorum queues keep a majority if *node* ends.  May switch.

        Raises:
            RuntimeError: they did not within a minute.
        """
        call = f"rabbit_upgrade_preparation:await_online_quorum_plus_one({QUORUM_TIMEOUT_MS})"
        if (outcome := node.evaluate(call, 2 * CTL_TIMEOUT)) != "true":
            raise RuntimeError(f"{call} at {node.name}: {outcome}")

    def mend(self) -> None:
        """Start the nodes that do not run.  May switch."""
        for node in self.nodes:
            node.resume()
            if not node.is_running:
                node.begin()
        for node in self.nodes:
            node.wait_ready()
            node.mend()

    def close(self) -> None:
        """Stop them for good.  May switch."""
        for node in self.nodes:
            node.kill()
            node.close()
        self._epmd.close()
