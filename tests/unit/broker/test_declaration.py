"""How a queue was declared, as a store keeps it."""

from __future__ import annotations

import pytest

from greenconn.broker.queues import Declaration


@pytest.mark.parametrize(
    ("limit", "means"), [(3, 3), (0, 0), (-1, None), ("abc", 20), (None, 20), (True, 20)]
)
def test_a_delivery_limit_that_cannot_be_counts_for_nothing(
    limit: object, means: int | None
) -> None:
    declared = Declaration(arguments={"x-delivery-limit": limit})
    assert declared.delivery_limit(20) == means
