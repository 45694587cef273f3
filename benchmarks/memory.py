"""The memory that consumers take.  Linux only."""

from __future__ import annotations

import gc
import resource

#: Bytes of objects of all kinds, small (Python's own allocator) and larger.
SIZES = (*range(16, 512, 16), *range(768, 8192, 512))
#: KiB by which memory must have grown: what was free has been used then.
ENOUGH = 256


class Growth:
    """By how much memory grows inside ``with``.

    What imports and connecting have left free would hide it, so it is filled first.
    """

    def __init__(self) -> None:
        self._ballast: list[bytes] = []
        self._grown = 0.0

    def __enter__(self) -> Growth:
        gc.collect()
        for size in SIZES:
            enough = _resident() + ENOUGH
            while _resident() < enough:
                self._ballast += [b"x" * size for _ in range(64)]
        self._grown = -_resident()
        return self

    def __exit__(self, *exc_info: object) -> None:
        gc.collect()
        self._grown += _resident()
        self._ballast.clear()

    def per(self, count: int) -> float:
        """KiB for each of *count*."""
        return self._grown / count


def _resident() -> float:
    """KiB that this process has in use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1024
