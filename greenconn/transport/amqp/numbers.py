"""The numbers of a connection's channels."""

from __future__ import annotations

__all__ = ["ChannelNumbers"]


class ChannelNumbers:
    """From 1 up; one that was given back is used again before a new one.

    A number may be given back only when the close of its channel is complete on both sides.
    """

    __slots__ = ("_free", "_last")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._last = 0

    def take(self, most: int) -> int | None:
        """A number that is not in use, *most* at most; None: all are."""
        if self._free:
            return self._free.pop()
        if self._last >= most:
            return None
        self._last += 1
        return self._last

    def give_back(self, number: int) -> None:
        """*number* may be used again."""
        self._free.append(number)
