"""What adapters of records need not write."""

from __future__ import annotations

from greenconn.broker.topology_port import Row
from tests.unit.broker.fake_store import FakeBroker, FakeTopology


def test_an_exchange_has_rows_or_none(fake_broker: FakeBroker) -> None:
    records = FakeTopology(fake_broker, lambda method, argument: None)
    assert records.has_rows("x") is False
    records.put("x", {"type": "direct"})
    assert records.has_rows("x") is False
    records.add("x", Row("key", "", "q"))
    assert records.has_rows("x") is True


def test_a_row_leads_to_a_queue_unless_it_says_so() -> None:
    assert Row("key", "pattern", "q") == Row("key", "pattern", "q", None, False)
