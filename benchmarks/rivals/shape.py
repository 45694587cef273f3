"""The sizes that the rivals have in common."""

from __future__ import annotations

#: Unanswered messages.
PREFETCH = 100
#: Consumers on one connection, and their queues.
CONSUMERS = 1000
#: Greenlets, threads or tasks that share something.
CALLERS = 100
#: Seconds to wait for what must come.
TIMEOUT = 60.0
