"""A beanstalkd of one's own."""

from __future__ import annotations

import signal

from tests.brokers.keeper import Keeper
from tests.brokers.packages import find_beanstalkd
from tests.brokers.server import Server


class Beanstalkd(Server):
    """A beanstalkd that this process owns.

    Arguments:
        is_durable: it keeps its jobs in a folder, so that a restart loses none.
        options: further options of the program, such as ``("-z", "1048576")``.

    Raises:
        NoBroker: the program is not to be had.
    """

    name = "beanstalkd"

    def __init__(
        self, keeper: Keeper, options: tuple[str, ...] = (), *, is_durable: bool = False
    ) -> None:
        self._programs = find_beanstalkd(keeper.directory)
        super().__init__(keeper)
        self._options = options
        self._is_durable = is_durable

    @property
    def url(self) -> str:
        """Its address."""
        return f"beanstalk://127.0.0.1:{self.port}/"

    def command(self) -> list[str]:
        """The program and its arguments."""
        command = [str(self._programs.server), "-l", "127.0.0.1", "-p", str(self.port)]
        if self._is_durable:
            # Each job is on the disk before it is answered for.
            command += ["-b", str(self.directory), "-f", "0"]
        return [*command, *self._options]

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return {"LANG": "C.UTF-8", **self._programs.libraries()}

    def drain(self) -> None:
        """Let it take no new jobs any more (SIGUSR1), until it is restarted."""
        self.signal(signal.SIGUSR1)
