"""Where the CPU time of a work goes.

A sampler and not ``cProfile``, which charges a function for what others do while its greenlet waits, and
makes short functions look expensive.  A signal comes for every few milliseconds of CPU time and finds
the stack that runs.  Python runs the handler at the next call, return from C, or turn of a loop: time
in C is charged to the Python function around it.
"""

from __future__ import annotations

import signal
from collections import Counter
from types import CodeType, FrameType

#: Seconds of CPU time between two samples; the kernel's tick may make it longer.
INTERVAL = 0.001
#: Samples, so that a row of one per cent means something.
ENOUGH = 1000
ROWS = 40
MARKS = ("/site-packages/", "/lib/python")


class Sampler:
    """Counts which functions run, and under which others."""

    def __init__(self) -> None:
        self.samples = 0  #: taken
        self._own: Counter[CodeType] = Counter()
        self._total: Counter[CodeType] = Counter()
        self._lines: Counter[tuple[CodeType, int]] = Counter()

    @property
    def is_content(self) -> bool:
        """Whether there are enough samples."""
        return self.samples >= ENOUGH

    def start(self) -> None:
        """Begin."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def stop(self) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.samples += 1
        self._own[frame.f_code] += 1
        self._lines[frame.f_code, frame.f_lineno] += 1
        stack = set()
        while frame is not None:
            stack.add(frame.f_code)
            frame = frame.f_back
        self._total.update(stack)

    def report(self) -> str:
        """The functions with the most time of their own, and the lines."""
        rows = [f"{self.samples} samples", "", "  own%  total%  function"]
        for code, own in self._own.most_common(ROWS):
            share, total = self._share(own), self._share(self._total[code])
            rows.append(f"{share:6.1f} {total:7.1f}  {_name(code)}  {_place(code)}")
        rows += ["", "  own%  line"]
        for (code, line), own in self._lines.most_common(ROWS):
            place = _place(code, line)
            rows.append(f"{self._share(own):6.1f}  {_name(code)}  {place}")
        rows += ["", "total%  function"]
        for code, total in self._total.most_common(ROWS):
            rows.append(f"{self._share(total):6.1f}  {_name(code)}  {_place(code)}")
        return "\n".join(rows)

    def _share(self, samples: int) -> float:
        return samples / max(1, self.samples) * 100


def _name(code: CodeType) -> str:
    name: str = getattr(code, "co_qualname", code.co_name)  # Python 3.11
    return name


def _place(code: CodeType, line: int | None = None) -> str:
    path = code.co_filename
    for mark in MARKS:
        path = path.split(mark, 1)[-1]
    return f"{path}:{line or code.co_firstlineno}"
