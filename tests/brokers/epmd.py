"""Erlang's port mapper, by which nodes and their tools find each other's ports."""

from __future__ import annotations

from collections.abc import Mapping

from tests.brokers.keeper import Keeper
from tests.brokers.server import Server


class Epmd(Server):
    """A port mapper of the tests' own; without one a node starts one as a daemon, which stays."""

    name = "epmd"

    def __init__(self, keeper: Keeper) -> None:
        super().__init__(keeper)
        self._environment: dict[str, str] = {}

    def serve(self, environment: Mapping[str, str]) -> None:
        """Start it, unless it runs, and wait until it is ready.  May switch.

        Arguments:
            environment: of a node: its PATH has the program.

        Raises:
            NoBroker: it did not start.
        """
        if not self.is_running:
            self._environment = dict(environment)
            self.begin()
        self.wait_ready()

    def command(self) -> list[str]:
        """The program and its arguments."""
        return ["epmd", "-port", str(self.port), "-address", "127.0.0.1"]

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return self._environment
