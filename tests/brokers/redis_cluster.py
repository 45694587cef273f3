"""A Redis Cluster of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import BinaryIO, Final

from gevent import sleep
from gevent.socket import create_connection

from tests.brokers.keeper import Keeper
from tests.brokers.packages import NoBroker
from tests.brokers.ports import free_ports
from tests.brokers.redis_server import RedisServer

SLOTS: Final = 16384
#: Milliseconds after which the others take a silent node for dead.
NODE_TIMEOUT: Final = 1000
#: Seconds that a cluster may take to agree.
SOON: Final = 60.0


class ClusterNode(RedisServer):
    """A node of a cluster.

    Arguments:
        options: further options of ``redis-server``.

    Attributes:
        bus: the port at which the other nodes reach it.
        tls_port: another one, which speaks TLS where *options* have certificates.
    """

    name = "redis-node"

    def __init__(
        self, keeper: Keeper, options: tuple[str, ...] = (), program: str | None = None
    ) -> None:
        super().__init__(keeper, program=program)
        self.bus, self.tls_port = free_ports(2)
        self._options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT)),
            *("--cluster-config-file", str(self.directory / "nodes.conf")),
            *("--cluster-port", str(self.bus), "--cluster-announce-ip", "127.0.0.1"),
            *("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"),
            *options,
        )
        self._has_tls = "--tls-cert-file" in options
        if self._has_tls:
            self._options += ("--tls-port", str(self.tls_port), "--tls-cluster", "yes")

    @property
    def known_port(self) -> int:
        """The port by which the other nodes know it."""
        return self.tls_port if self._has_tls else self.port

    def command(self) -> list[str]:
        """The program and its arguments; a cluster has one database."""
        command = super().command()
        at = command.index("--databases")
        return command[:at] + command[at + 2 :]

    def ask(self, *words: object) -> str:
        """Send a command and return its reply as text.  May switch."""
        with create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            parts = [str(each).encode() for each in words]
            sock.sendall(
                b"*%d\r\n%b"
                % (len(parts), b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in parts))
            )
            return _read(sock.makefile("rb"))

    @property
    def id(self) -> str:
        """Its name in the cluster."""
        return self.ask("CLUSTER", "MYID")

    @property
    def is_master(self) -> bool:
        """Whether it is a master now."""
        return self.is_running and self.ask("ROLE").startswith("master")

    def follows(self, master: ClusterNode) -> bool:
        """Return whether it is a replica of a master.  May switch."""
        return f"slave 127.0.0.1 {master.port}" in self.ask("ROLE")


def _read(file: BinaryIO) -> str:
    line = file.readline().decode().rstrip("\r\n")
    kind, text = line[:1], line[1:]
    if kind == "$":
        size = int(text)
        return "" if size < 0 else file.read(size + 2)[:-2].decode("utf-8", "replace")
    if kind == "*":
        return " ".join(_read(file) for _ in range(int(text)))
    if kind == "-":
        raise RuntimeError(text)
    return text


class RedisCluster:
    """Three masters with a replica each, on this machine.

    Arguments:
        keeper: ends the nodes, whatever becomes of this process.
        options: further options of each node.
        replicas: of each master.

    Raises:
        NoBroker: the program is not to be had.
    """

    def __init__(
        self, keeper: Keeper, options: tuple[str, ...] = (), replicas: int = 1, masters: int = 3
    ) -> None:
        self.nodes = [ClusterNode(keeper, options) for _ in range(masters * (1 + replicas))]
        self._masters = masters
        self._is_joined = False

    @property
    def url(self) -> str:
        """The address of the cluster, by its first nodes."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    @property
    def urls(self) -> str:
        """The addresses of its first nodes."""
        ports = [each.port for each in self.nodes[: self._masters]]
        return ";".join(f"redis+cluster://127.0.0.1:{each}" for each in ports)

    @property
    def is_running(self) -> bool:
        """Whether all nodes live."""
        return all(each.is_running for each in self.nodes)

    def start(self) -> None:
        """Start the nodes, and join them if they are new.  May switch.

        Raises:
            NoBroker: they do not start, or do not agree.
        """
        for each in self.nodes:
            each.begin()
        for each in self.nodes:
            each.wait_ready()
        if self._is_joined:
            self.wait_ready()
            return
        self._is_joined = True
        first, *others = self.nodes
        for number, each in enumerate(self.nodes, 1):
            each.ask("CLUSTER", "SET-CONFIG-EPOCH", number)
        for each in others:
            each.ask("CLUSTER", "MEET", "127.0.0.1", first.known_port, first.bus)
        masters = self.nodes[: self._masters]
        share = SLOTS // len(masters)
        for number, each in enumerate(masters):
            end = SLOTS if each is masters[-1] else (number + 1) * share
            each.ask("CLUSTER", "ADDSLOTSRANGE", number * share, end - 1)
        self.until(lambda: all(self._knows_all(each) for each in self.nodes), "they do not meet")
        for number, each in enumerate(self.nodes[self._masters :]):
            each.ask("CLUSTER", "REPLICATE", masters[number % len(masters)].id)
        self.wait_ready()

    def _knows_all(self, node: ClusterNode) -> bool:
        return f"cluster_known_nodes:{len(self.nodes)}" in node.ask("CLUSTER", "INFO")

    def wait_ready(self) -> None:
        """Wait until all nodes have one view, with a master and its replicas in step.  May switch.

        A node that was frozen or replaced is a master in its own view, which says that all is well,
        until the others tell it; what is killed in that moment may have no replica.
        """
        replicas = len(self.nodes) - self._masters
        self.until(lambda: all(self.is_ok(each) for each in self.nodes), "they do not agree")
        self._wait_agreed()
        self.until(lambda: len(self.masters) == self._masters, "too many masters, or too few")
        self.until(lambda: self._in_sync() == replicas, "replicas do not follow")

    def _wait_agreed(self) -> None:
        self.until(lambda: len({self._view(each) for each in self.nodes}) == 1, "views differ")

    def _view(self, node: ClusterNode) -> frozenset[tuple[str, ...]]:
        """Return a node's name, flags, master and slots of each, as one of them sees them."""
        lines = [line.split() for line in node.ask("CLUSTER", "NODES").splitlines()]
        return frozenset(
            (
                name,
                flags.replace("myself,", ""),
                master,
                *(each for each in slots if each[0] != "["),
            )
            for name, _, flags, master, _, _, _, _, *slots in lines
        )

    def _end_moves(self, node: ClusterNode) -> None:
        """Have a node forget moves of slots that never ended: it would ignore who has the slot."""
        for line in node.ask("CLUSTER", "NODES").splitlines():
            for mark in (each for each in line.split()[8:] if each.startswith("[")):
                with suppress(RuntimeError):  # it is a replica by now
                    node.ask("CLUSTER", "SETSLOT", mark[1:].partition("-")[0], "STABLE")

    def _in_sync(self) -> int:
        return sum(
            "master_link_status:up" in each.ask("INFO", "replication") for each in self.nodes
        )

    def until(self, is_so: object, why: str) -> None:
        """Wait until something is so.  May switch.

        Raises:
            NoBroker: it was not in time.
        """
        end = monotonic() + SOON
        while not is_so():  # type: ignore[operator]
            if monotonic() > end:
                raise NoBroker(f"redis cluster: {why}\n{self._describe()}")
            sleep(0.02)

    def _describe(self) -> str:
        """Return how each node sees the cluster, for a failed test to show."""
        views = []
        for each in self.nodes:
            try:
                view = each.ask("CLUSTER", "INFO") + each.ask("CLUSTER", "NODES")
            except (OSError, RuntimeError) as error:
                view = repr(error)
            views.append(f"node at {each.port}, seen by itself:\n{view}")
        return "\n".join(views)

    def is_ok(self, node: ClusterNode) -> bool:
        """Return whether a node takes all slots for served.  May switch."""
        return "cluster_state:ok" in node.ask("CLUSTER", "INFO")

    @property
    def masters(self) -> Sequence[ClusterNode]:
        """The nodes that are masters now."""
        return [each for each in self.nodes if each.is_master]

    def owner_of(self, slot: int) -> ClusterNode:
        """Return the master that serves a slot.  May switch."""
        for line in self.masters[0].ask("CLUSTER", "NODES").splitlines():
            _, address, flags, _, _, _, _, _, *ranges = line.split()
            for each in ranges:
                first, _, last = each.partition("-")
                if "master" not in flags or each.startswith("["):
                    continue  # a replica, or a slot on its way
                if int(first) <= slot <= int(last or first):
                    port = int(address.partition("@")[0].rpartition(":")[2])
                    return next(node for node in self.nodes if node.port == port)
        raise LookupError(slot)

    def move(self, slot: int, to: ClusterNode) -> None:
        """Move a slot with its keys to another master, key by key.  May switch."""
        self.end_move(slot, self.begin_move(slot, to), to)

    def begin_move(self, slot: int, to: ClusterNode) -> ClusterNode:
        """Begin to move a slot, and return the node that still has all its keys.  May switch."""
        source = self.owner_of(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        return source

    def end_move(self, slot: int, source: ClusterNode, to: ClusterNode) -> None:
        """Move the keys that are left, one by one, and then the slot.  May switch."""
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.ask("MIGRATE", "127.0.0.1", to.port, keys, 0, 5000)
        for node in dict.fromkeys((to, source, *self.masters)):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)
        self._wait_agreed()

    def stop(self) -> None:
        """Stop all nodes in order.  May switch."""
        for each in self.nodes:
            each.stop()

    def kill(self) -> None:
        """End all nodes at once (SIGKILL).  May switch."""
        for each in self.nodes:
            each.kill()

    def pause(self) -> None:
        """Freeze all nodes (SIGSTOP).  May switch."""
        for each in self.nodes:
            each.pause()

    def resume(self) -> None:
        """Let them go on after :meth:`pause`."""
        for each in self.nodes:
            each.resume()

    def mend(self) -> None:
        """Start what was stopped, and wait until all is well again.  May switch."""
        for each in self.nodes:
            each.resume()
            if not each.is_running:
                each.start()
        for each in self.nodes:
            if each.is_master:
                self._end_moves(each)
        self.wait_ready()

    def close(self) -> None:
        """Stop it for good.  May switch."""
        for each in self.nodes:
            each.kill()
            each.close()
