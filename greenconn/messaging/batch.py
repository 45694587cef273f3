"""A batch of publishes (kombu's interface)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Batch"]


class Batch:
    """The context that ``Producer.batch()`` returns.  Messages are not held back.

    Arguments:
        max_size: messages that a transport would defer at most; at least 1.

    Raises:
        ValueError: *max_size* is no such number.
    """

    def __init__(self, max_size: int) -> None:
        if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
            raise ValueError(f"max_size is a number of messages from 1 on, not {max_size!r}")
        self.max_size = max_size
        self._was_entered = False
        self._is_active = False

    def __enter__(self) -> Self:
        if self._was_entered:
            raise RuntimeError("a batch can be entered once: ask the producer for another")
        self._was_entered = self._is_active = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_active = False

    def flush(self) -> None:
        """Have what was published so far leave now; it has left already.

        Raises:
            RuntimeError: outside of the ``with`` block.
        """
        if not self._is_active:
            raise RuntimeError("flush() belongs into the with block of the batch")
