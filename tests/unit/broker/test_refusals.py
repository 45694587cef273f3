"""What the broker refuses harms nothing that was answered at the same time."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.exceptions import ChannelError
from greenconn.transport.virtual.declaration import Declaration
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import World
from tests.unit.broker.test_publishing import channel_to, publish


def test_a_grave_that_cannot_be_looked_at(connect: Opener, world: World) -> None:
    channel = channel_to(connect)
    channel.queue_declare(
        "q", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    )
    for number in range(3):
        publish(channel, f"{number}")

    def refuse(method: str, argument: Any) -> None:
        if method == "find_queue" and argument == "dead":
            raise ChannelError("you may not look at it")

    world.before = refuse
    got = [channel.basic_get("q") for _ in range(3)]
    assert all(got)
    for each in got:
        assert each is not None
        if each.body == "1":
            each.reject()
        else:
            each.ack()
    channel.connection.catch_up()
    assert channel.connection.lost is None
    assert world.bodies("q") == [b"1"]


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_an_answer_that_is_refused(connect: Opener, world: World, refused: int) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    for number in range(3):
        publish(channel, f"{number}")
    got = [channel.basic_get("q") for _ in range(3)]
    held = world.items["q"][refused].number

    def refuse(method: str, argument: Any) -> None:
        if method == "settle" and any(answer.handle[1] == held for answer in argument):
            raise ChannelError("not this one")

    world.before = refuse
    for each in got:
        assert each is not None
        each.ack()
    channel.connection.catch_up()
    assert channel.connection.lost is None
    assert world.bodies("q") == [str(refused).encode()]
    world.before = lambda method, argument: None
    publish(channel, "more")
    more = channel.basic_get("q", no_ack=True)
    assert more is not None
    channel.connection.catch_up()
    assert world.bodies("q") == [str(refused).encode()]


@pytest.mark.parametrize(
    ("limit", "means"), [(3, 3), (0, 0), (-1, None), ("abc", 20), (None, 20), (True, 20)]
)
def test_a_delivery_limit_that_cannot_be_counts_for_nothing(
    limit: object, means: int | None
) -> None:
    declared = Declaration(arguments={"x-delivery-limit": limit})
    assert declared.delivery_limit(20) == means
