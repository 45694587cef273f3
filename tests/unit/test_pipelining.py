"""Declarations of several entities without a wait for each reply."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock, patch

import pytest

from greenconn.entity import Exchange, Queue, binding
from greenconn.entity.declaration import Declarations, declare_pipelined
from greenconn.exceptions import NotFound
from greenconn.session.topology import IN_FLIGHT
from tests.unit.fake_channel import FakeChannel, FakeClient


class Pipeline:
    """Requests of which those behind one that fails are not carried out."""

    def __init__(self, channel: PipeliningChannel) -> None:
        self.channel = channel
        self.replies: list[Any] = []
        self.most = 0
        self.is_left = False

    @property
    def due(self) -> int:
        return len(self.replies)

    def add(self, reply: Any) -> None:
        self.replies.append(reply)
        self.most = max(self.most, self.due)

    def receive(self) -> list[Any]:
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            self.channel.end(reply)
            raise reply
        return list(reply)

    def __exit__(self, *exc_info: object) -> None:
        self.is_left = True


class PipeliningChannel(FakeChannel):
    """Notes "reply" where all that was sent before has its reply."""

    can_pipeline = True

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.pipelines: list[Pipeline] = []
        #: What the broker answers to the request of that number.
        self.errors: dict[int, Exception] = {}
        self.sent = 0

    def pipeline(self) -> Pipeline:
        self.pipelines.append(Pipeline(self))
        return self.pipelines[-1]

    def _note(self, method: str, **arguments: Any) -> None:
        super()._note(method, **arguments)
        pipeline = arguments.get("nowait")
        if isinstance(pipeline, Pipeline):
            pipeline.add(self.errors.get(self.sent, ("name", 0, 7)))
        else:
            assert not pipeline
            assert not any(each.due for each in self.pipelines), "replies to earlier ones are due"
        self.sent += 1


@pytest.fixture
def channel() -> PipeliningChannel:
    return PipeliningChannel(FakeClient().channel().connection)


def test_nothing_is_waited_for_before_the_end(channel: PipeliningChannel) -> None:
    bound = Queue("d", bindings=[binding(Exchange("e"), "1"), binding(Exchange("e"), "2")])
    with Declarations(channel) as declarations:
        declarations.declare(Queue("a", Exchange("e"), "k"))
        declarations.declare(Queue("b", dead_letter=True))
        declarations.declare(Exchange("c"))
        declarations.declare(bound)
        declarations.declare(Queue("f", no_declare=True))
        [pipeline] = channel.pipelines
        assert pipeline.due == len(channel.calls) == 3 + 2 + 1 + 5
        declarations.finish()
        assert not pipeline.due
    assert channel.methods == [
        *("exchange_declare", "queue_declare", "queue_bind"),
        *("queue_declare", "queue_declare", "exchange_declare", "queue_declare"),
        *("exchange_declare", "queue_bind") * 2,
    ]
    assert pipeline.is_left


def test_a_limited_number_is_in_flight(channel: PipeliningChannel) -> None:
    with Declarations(channel) as declarations:
        for number in range(2 * IN_FLIGHT):
            declarations.declare(Queue(str(number), Exchange("e"), "k"))
        declarations.finish()
    [pipeline] = channel.pipelines
    assert IN_FLIGHT < pipeline.most <= IN_FLIGHT + 3
    assert len(channel.of("queue_declare")) == 2 * IN_FLIGHT


class OtherQueue(Queue):
    """A queue that uses the reply."""

    count: int

    def queue_declare(self, *args: Any, **kwargs: Any) -> Any:
        reply = super().queue_declare(*args, **kwargs)
        self.count = reply.consumer_count
        return reply


class OtherExchange(Exchange):
    """An exchange whose programs know its arguments."""

    def declare(  # type: ignore[override]  # as an old program may have it
        self, channel: Any = None, **how: Any
    ) -> Any:
        assert not how.get("nowait")
        return super().declare(channel=channel)


class OtherBinding(binding):
    """A binding that takes no further arguments."""

    def bind(self, entity: Any, nowait: bool = False, channel: Any = None) -> None:
        assert not nowait
        super().bind(entity, channel=channel)


def mocked(entity: Any) -> Any:
    """Replace the method on the entity itself."""
    declare = entity.declare

    def only_on(channel: Any) -> Any:
        return declare(channel=channel)

    entity.declare = only_on
    return entity


@pytest.mark.parametrize(
    "queue",
    [
        OtherQueue("q"),
        Queue("q", OtherExchange("o"), "k"),
        Queue("q", bindings=[binding(OtherExchange("o"))]),
        Queue("q", bindings=[OtherBinding(Exchange("o"))]),
        Queue("q", on_declared=lambda *reply: None),
        Queue(""),
        mocked(Queue("q")),
    ],
    ids=["queue", "exchange", "bound", "binding", "on_declared", "unnamed", "mocked"],
)
def test_one_that_may_need_its_reply_waits_and_comes_in_its_turn(
    channel: PipeliningChannel, queue: Queue
) -> None:
    with Declarations(channel) as declarations:
        declarations.declare(Queue("before"))
        declarations.declare(queue)
        declarations.declare(Queue("behind"))
        [pipeline] = channel.pipelines
        assert pipeline.due == 1
        declarations.finish()
    names = [call.arguments["queue"] for call in channel.of("queue_declare")]
    assert names == ["before", queue.name if queue.name == "q" else "", "behind"]


def test_the_error_is_that_of_the_request_that_was_refused(channel: PipeliningChannel) -> None:
    error = NotFound("no exchange 'e'")
    channel.errors[1] = error
    # The reader learns of it while others are still being sent.
    channel.script["queue_bind"] = lambda: channel.end(error)
    with Declarations(channel) as declarations:
        declarations.declare(Queue("a"))
        declarations.declare(Exchange("e"))
        declarations.declare(Queue("b", Exchange("amq.direct"), "k"))
        with pytest.raises(NotFound, match="no exchange 'e'"):
            declarations.declare(Queue("c"))
    assert channel.pipelines[0].is_left


@pytest.mark.parametrize("channel", [FakeClient().channel(), Mock()], ids=["fake", "mock"])
def test_other_channels_wait_for_each_reply(channel: Any) -> None:
    queue = Queue("a", Exchange("e"), "k")
    nowait: list[Any] = []
    with patch.multiple(
        channel,
        exchange_declare=lambda **arguments: nowait.append(arguments["nowait"]),
        queue_declare=lambda **arguments: nowait.append(arguments["nowait"]),
        queue_bind=lambda **arguments: nowait.append(arguments["nowait"]),
    ):
        declare_pipelined(queue, channel)
    assert nowait == [False] * 3
