"""Names that are made up or checked."""

from __future__ import annotations

import re

from greenconn.broker.envelope import TagMaker
from greenconn.broker.queues import is_lost, new_owner, note_lost


def test_delivery_tags_are_uuids_and_unique() -> None:
    makers = [TagMaker(), TagMaker()]
    tags = [maker.next() for maker in makers for _ in range(100)]
    assert len(set(tags)) == 200
    assert all(
        re.fullmatch(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}", each)
        for each in tags
    )


def test_owners_that_are_lost_are_known_in_this_process() -> None:
    owner, other = new_owner(), new_owner()
    note_lost(owner)
    assert is_lost(owner)
    assert not is_lost(other)
    assert not is_lost(None)
