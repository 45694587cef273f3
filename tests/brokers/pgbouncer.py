"""A PgBouncer of one's own."""

from __future__ import annotations

from pathlib import Path

from tests.brokers.keeper import Keeper
from tests.brokers.packages import find_pgbouncer
from tests.brokers.postgresql import PostgresServer, UserServer

_CONFIGURATION = """
[databases]
postgres = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
"""


class PgBouncer(UserServer):
    """A PgBouncer before a server.

    Arguments:
        mode: ``session``, ``transaction`` or ``statement``.
        size: connections to the server, at most.

    Raises:
        NoBroker: the program is not to be had.
    """

    name = "pgbouncer"

    def __init__(self, keeper: Keeper, server: PostgresServer, mode: str, size: int = 20) -> None:
        super().__init__(keeper, find_pgbouncer(keeper.directory))
        self._configuration = self.directory / "pgbouncer.ini"
        text = _CONFIGURATION.format(server=server.port, port=self.port, mode=mode, size=size)
        self._configuration.write_text(text)

    def command(self) -> list[str | Path]:
        """The program and its arguments."""
        return [*self._prefix, self._programs.server, "-q", self._configuration]

    @property
    def url(self) -> str:
        """The address of the database ``postgres``."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
