"""The queue between the two programs: both declare it, so either may start first."""

from __future__ import annotations

from greenconn import Queue

#: Mails that cannot be sent are kept in mail.dead.
MAIL = Queue("mail", dead_letter=True)
