"""The jobs that a link has reserved, and how their reservations are renewed.

The channels renew what they hold each third of a lease, which is right for jobs of ours.  Those of other
programs may have a shorter time to run: they are touched as often as that demands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from greenconn.green.ticker import Ticker
from greenconn.transport.beanstalk.commands import Job
from greenconn.transport.beanstalk.pipeline import ignore_reply
from greenconn.wire.beanstalk import line

__all__ = ["Holding"]

#: Touches in the time to run of a job.
TOUCHES: Final = 3


class Holding:
    """The jobs of one link.  Nothing here switches.

    Arguments:
        lease: seconds; jobs with at least that time to run are renewed by others.
    """

    __slots__ = ("__weakref__", "_jobs", "_lease", "_ticker")

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._jobs: dict[Job, None] = {}
        self._ticker: Ticker | None = None

    def add(self, job: Job) -> None:
        """Add a job that was reserved."""
        self._jobs[job] = None
        if job.time_to_run < self._lease:
            interval = max(job.time_to_run, 1) / TOUCHES
            if self._ticker is None or self._ticker.interval > interval:
                self.stop()
                self._ticker = Ticker(interval, self._touch_short, "beanstalk-touch")
                self._ticker.start()

    def discard(self, jobs: Iterable[Job]) -> None:
        """Remove jobs that were settled or lost."""
        for job in jobs:
            self._jobs.pop(job, None)

    def touch(self) -> None:
        """Renew all reservations."""
        for job in self._jobs:
            # A lost one shows when it is settled.
            job.post(line(b"touch", job.number), ignore_reply)

    def stop(self) -> None:
        """Stop renewing those with a short time to run."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()

    def _touch_short(self, lag: float) -> None:
        # In the hub.
        short = [job for job in self._jobs if job.time_to_run < self._lease]
        if not short:
            self.stop()
        for job in short:
            job.post(line(b"touch", job.number), ignore_reply)
