"""The disposition of a held message."""

from __future__ import annotations

from greenconn.broker.port import Claimed, Settlement
from greenconn.broker.settlement_port import Disposition


def test_a_disposition_holds_back_nothing_unless_it_says_so() -> None:
    message = Claimed("q", None, "handle")
    disposition = Disposition(message, Settlement.REQUEUE)
    assert (disposition.delay, list(disposition.entries), disposition.is_unseen) == (0.0, [], False)
