"""The other sides of a measurement, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


class Company:
    """Starts them, and ends them.

    Arguments:
        url: of the broker.
    """

    #: The module that plays the roles.
    peers: ClassVar[str]

    def __init__(self, url: str) -> None:
        self.url = url
        self._peers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.clear()
        self.close()

    def clear(self) -> None:
        """End the other sides and delete the queues."""
        raise NotImplementedError

    def close(self) -> None:
        """End the connection."""
        raise NotImplementedError

    def peer(self, role: str, *arguments: str) -> subprocess.Popen[str]:
        """Start the other side in a process of its own."""
        peer = subprocess.Popen(
            [sys.executable, "-m", self.peers, role, self.url, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._peers.append(peer)
        assert peer.stdout is not None
        if peer.stdout.readline() != "ready\n":
            raise ConnectionError(f"the other side, {role!r}, did not start")
        return peer

    @staticmethod
    def go(peer: subprocess.Popen[str]) -> None:
        """Have the other side begin."""
        assert peer.stdin is not None
        peer.stdin.write("go\n")
        peer.stdin.flush()

    def end_peers(self) -> None:
        """End the other sides."""
        for peer in self._peers:
            peer.kill()
            peer.communicate()
        self._peers = []
