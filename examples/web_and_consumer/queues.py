"""The queue between the two programs: both declare it alike, so it does not matter which is first."""

from __future__ import annotations

from greenconn import Queue

MAIL = Queue("mail")
