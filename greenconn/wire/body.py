"""Buffers for large body frames, whose bytes are copied once on their way to the body.

What is received into fresh memory costs more in page faults than in copying: a body of a MiB would
take 500 of them.  So such a frame is received into blocks that are used again.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LARGE", "BlockPool", "LargeFrame"]

#: Bytes of a frame's payload from which on it is worth while.
LARGE: Final = 64 * 1024
#: Bytes of a block: the payload of the largest frame at AMQP's usual limit, and of no frame more than
#: twice what its peer has announced.
BLOCK: Final = 128 * 1024
#: Blocks that are kept for the next body.
KEPT: Final = 8
#: The end of a frame, and the head of the next one.
TAIL: Final = 8


class BlockPool:
    """Free blocks, kept for the next large bodies.

    Attributes:
        free: the blocks.
    """

    def __init__(self) -> None:
        self.free: list[bytearray] = []

    def take(self) -> bytearray:
        """Return a block, with anything in it."""
        return self.free.pop() if self.free else bytearray(BLOCK)

    def release(self, blocks: list[bytearray]) -> None:
        """Take back *blocks* that are not in use any more."""
        self.free += blocks[: KEPT - len(self.free)]

    def clear(self) -> None:
        """Keep none."""
        self.free.clear()


class LargeFrame:
    """A body frame that is coming.

    A peer gets the memory for what it has sent and one block more, whatever it announces.

    Arguments:
        channel: its number.
        size: bytes of its payload.
        source: of blocks.

    Attributes:
        missing: bytes that have not come.
        blocks: what they are in, each full but the last.
    """

    def __init__(self, channel: int, size: int, source: BlockPool) -> None:
        self.channel = channel
        self.size = size
        self.missing = size
        self.blocks: list[bytearray] = []
        self._source = source
        self._tail = bytearray(TAIL)
        self._begin_block()

    def _begin_block(self) -> None:
        block = self._source.take()
        self.blocks.append(block)
        self._view = memoryview(block)
        self._at = 0

    def room(self) -> list[memoryview | bytearray]:
        """Buffers for the next bytes: a block, and if the frame ends there the tail behind it."""
        view = self._view[self._at : self._at + self.missing]
        return [view, self._tail] if len(view) == self.missing else [view]

    def fill(self, count: int) -> bytes:
        """Note that *count* bytes were put into ``room``; return those that are in the tail."""
        taken = min(count, self.missing)
        self._advance(taken)
        return bytes(self._tail[: count - taken])

    def put(self, data: memoryview) -> int:
        """Take bytes from the beginning of *data*; return how many."""
        taken = 0
        while self.missing and taken < len(data):
            piece = data[taken : taken + min(self.missing, BLOCK - self._at)]
            self._view[self._at : self._at + len(piece)] = piece
            self._advance(len(piece))
            taken += len(piece)
        return taken

    def _advance(self, count: int) -> None:
        self._at += count
        self.missing -= count
        if self.missing and self._at == BLOCK:
            self._begin_block()

    def pieces(self) -> list[memoryview]:
        """Return the payload, once none of it is missing."""
        views = [memoryview(block) for block in self.blocks]
        views[-1] = views[-1][: self._at]
        return views
