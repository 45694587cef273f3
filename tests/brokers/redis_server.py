"""A Redis of one's own."""

from __future__ import annotations

from tests.brokers.keeper import Keeper
from tests.brokers.packages import find_faketime, find_redis
from tests.brokers.server import Server

DATABASES = 16


class RedisServer(Server):
    """A Redis that this process owns; its data are in memory only.

    Arguments:
        options: further options of ``redis-server``, such as ``("--requirepass", "x")``.
        program: which of the newer servers it is, where those are wanted: ``redis`` or ``valkey``.

    Raises:
        NoBroker: the program is not to be had.
    """

    name = "redis"
    ready = b"Ready to accept connections"

    def __init__(
        self, keeper: Keeper, options: tuple[str, ...] = (), program: str | None = None
    ) -> None:
        self._programs = find_redis(keeper.directory, program)
        super().__init__(keeper)
        self.server = self._programs.server
        self._options = options

    @property
    def url(self) -> str:
        """The address of database 0."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """The address of a database."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def command(self) -> list[str]:
        """The program and its arguments."""
        command = [str(self.server), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.directory), "--save", "", "--appendonly", "no"]
        # A replica is sent its copy at once, and not after five seconds in which others could come.
        command += ["--repl-diskless-sync-delay", "0"]
        return [*command, "--databases", str(DATABASES), *self._options]

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return {"LANG": "C.UTF-8", **self._programs.libraries()}


class SteppedRedis(RedisServer):
    """A Redis whose clock can be set; the machine's and that of its clients go on.

    Raises:
        NoBroker: one of the programs is not to be had.
    """

    def __init__(self, keeper: Keeper, options: tuple[str, ...] = ()) -> None:
        super().__init__(keeper, options)
        self._library = find_faketime(keeper.directory)
        self._offset = self.directory / "clock"
        self.set_clock(0)

    def set_clock(self, seconds: int) -> None:
        """Set its clock so many seconds before (or behind, below 0) the machine's."""
        new = self._offset.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self._offset)

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return {
            **super().environment(),
            # The C library's allocator: jemalloc asks for the time before the other one is ready.
            "LD_PRELOAD": f"{self._library} libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


class RedisSentinel(RedisServer):
    """A sentinel.

    Arguments:
        master: the port of the server that it watches.
        quorum: sentinels that must agree.
    """

    ready = b"+monitor master"

    def __init__(self, keeper: Keeper, master: int, quorum: int) -> None:
        super().__init__(keeper)
        self._text = f"""port {self.port}
bind 127.0.0.1
dir {self.directory}
sentinel monitor mymaster 127.0.0.1 {master} {quorum}
sentinel down-after-milliseconds mymaster 500
sentinel failover-timeout mymaster 2000
"""

    def command(self) -> list[str]:
        """The program and its arguments; it writes what it learns into its file."""
        file = self.directory / "sentinel.conf"
        if not file.exists():
            file.write_text(self._text)
        return [str(self.server), str(file), "--sentinel"]
