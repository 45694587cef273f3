"""The arguments of spawn_consumer."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import pytest

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import SerializerNotInstalled
from greenconn.options import Retry
from greenconn.worker import spawn_consumer
from greenconn.worker.options import BatchArguments, ConsumerOptions, checked_options


def handler(body: Any, message: Any) -> None:
    """Does nothing."""


def given(queue: Any = "q", /, **options: Any) -> ConsumerOptions:
    """The options of a call with *options*."""
    return checked_options(queue, {"handler": handler}, options)


def consumer(**options: Any) -> ConsumerOptions:
    """The options of a call whose *options* have names of their own."""
    return checked_options("q", {"handler": handler, **options}, {})


@pytest.mark.parametrize(
    ("prefetch", "queues", "shares"),
    [(10, 1, [10]), (10, 3, [4, 3, 3]), (3, 3, [1, 1, 1]), (0, 2, [0, 0])],
)
def test_the_prefetch_is_divided(prefetch: int, queues: int, shares: list[int]) -> None:
    names = [f"q{number}" for number in range(queues)]
    assert (
        checked_options(names, {"handler": handler, "prefetch_count": prefetch}, {}).shares()
        == shares
    )


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": None},
        {"concurrency": 1.5},
        {"prefetch_count": -1},
        {"prefetch_count": 70000},
        {"on_error": "drop"},
        {"on_error": None},
        {"retry": Retry(), "no_ack": True},
        {"retry": {"delay": 61}},
        {"retry": {"max_delay": 61}},
        {"retry": {"attempts": 3}},
        {"on_error": "requeue", "no_ack": True},
        {"no_ack": "yes"},
        {"name": 7},
    ],
)
def test_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        consumer(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"handler_timeout": 0},
        {"handler_timeout": -1.0},
        {"batch_size": 0},
        {"batch_interval": 1.0},
        {"batch_size": 10, "batch_interval": 0},
        {"priority": "high"},
        {"exclusive": "yes"},
        {"arguments": [1]},
        {"on_decode_error": "reject"},
        {"tag_prefix": None},
    ],
)
def test_further_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        given(**options)


def test_fewer_messages_than_queues() -> None:
    with pytest.raises(ValueError, match="at least 1 for each of 3 queues, got 2"):
        checked_options(["a", "b", "c"], {"handler": handler, "prefetch_count": 2}, {})


def test_a_prefetch_below_the_batches() -> None:
    options = {"handler": handler, "concurrency": 2, "prefetch_count": 19}
    with pytest.raises(ValueError, match="at least batch_size x concurrency = 20"):
        checked_options("q", options, {"batch_size": 10})


@pytest.mark.parametrize("options", [{"no_ack": True}, {"prefetch_count": 0}])
def test_a_stream_needs_acks_and_prefetch(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="offset"):
        checked_options("q", {"handler": handler, **options}, {"offset": "first"})


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="no option 'batchsize'; did you mean 'batch_size'"):
        given(batchsize=3)
    with pytest.raises(TypeError, match="did you mean 'prefetch_count'"):
        checked_options("q", {"handler": handler, "prefetch_count": 1}, {"prefetch": 3})
    with pytest.raises(TypeError, match=r"known: .*batch_interval.*, prefetch_count"):
        checked_options("q", {"handler": handler, "prefetch_count": 1}, {"zzz": 1})


def test_the_public_function_checks_before_anything_is_done() -> None:
    connection = Connection("memory://")
    with pytest.raises(TypeError, match="did you mean 'exclusive'"):
        spawn_consumer("q", handler, connection=connection, exclusiv=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="handler must be a callable, got 7"):
        spawn_consumer("q", 7, connection=connection)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="a Connection, a URL or None"):
        spawn_consumer("q", handler, connection=7)  # type: ignore[call-overload]
    assert not connection.connected


@pytest.mark.parametrize(
    ("unfit", "why"),
    [
        (lambda: None, "too many positional arguments"),
        (lambda body: None, "too many positional arguments"),
        (lambda body, message, more: None, "missing a required argument: 'more'"),
        (lambda body, message, *, more: None, "'more'"),
    ],
)
def test_a_handler_that_could_never_be_called(unfit: Any, why: str) -> None:
    # Else each message would be rejected, and gone.
    with pytest.raises(TypeError, match=r"is called as handler\(body, message\) .*" + why):
        checked_options("q", {"handler": unfit}, {})


@pytest.mark.parametrize(
    "fit",
    [
        print,
        max,  # says nothing of its arguments
        lambda *args: None,
        lambda body, message, more=1: None,
        partial(lambda first, body, message: None, 1),
    ],
)
def test_handlers_that_may_be_called(fit: Any) -> None:
    assert checked_options("q", {"handler": fit}, {}).handler is fit


@pytest.mark.parametrize("queue", [7, b"q", ["q", None]])
def test_what_is_no_queue(queue: Any) -> None:
    with pytest.raises(TypeError):
        given(queue)


@pytest.mark.parametrize("queue", ["", [], [""]])
def test_no_queue(queue: Any) -> None:
    with pytest.raises(ValueError):
        given(queue)


def test_a_queue_is_copied_with_what_it_is_given() -> None:
    notified: list[Any] = []
    queue = Queue("q", on_declared=lambda *args: notified.append(args))
    own = given(queue).queues[0]
    assert isinstance(own, Queue)
    assert own is not queue
    assert own == queue
    assert own.on_declared is queue.on_declared


def test_accept_takes_names_and_types() -> None:
    assert consumer(accept=["json", "text/x-mine"]).accept == {"application/json", "text/x-mine"}
    with pytest.raises(SerializerNotInstalled):
        consumer(accept=["nonsense"])


class Offsets:
    """A store of offsets."""

    def load(self, stream: str, reader: str) -> int | None:
        """Return none."""

    def store(self, stream: str, reader: str, offset: int) -> None:
        """Keep nothing."""


def test_a_reader_whose_offset_is_kept_begins_with_the_first_message() -> None:
    stream = Queue("q", queue_arguments={"x-queue-type": "stream"})
    last = Queue("q", consumer_arguments={"x-stream-offset": "last"})
    kept = {"handler": handler, "name": "billing"}
    options = checked_options([stream, "q", last], kept, {"offsets": Offsets()})
    assert [options.offset_of(queue) for queue in options.queues] == ["first", "first", "last"]
    options = checked_options(stream, kept, {"offsets": Offsets(), "offset": "next"})
    assert options.offset_of(options.queues[0]) == "next"


@pytest.mark.parametrize(
    ("queue", "options", "further", "error"),
    [
        ("q", {}, {}, "name must be given with offsets"),
        (Queue("q"), {"name": "billing"}, {}, "which is not a stream"),
        ("q", {"name": "billing"}, {"offsets": {}}, "must have methods load and store"),
        ("q", {"name": "billing"}, {"store_every": 0}, "^store_every must be a positive integer"),
        ("q", {"name": "billing"}, {"store_interval": 0}, "store_interval must be a number"),
        ("q", {"name": "billing", "no_ack": True}, {}, "must have acks and a prefetch_count"),
    ],
)
def test_what_offsets_need(queue: Any, options: Any, further: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        checked_options(queue, {"handler": handler, **options}, {"offsets": Offsets(), **further})


def test_queue_of_dead_letters() -> None:
    assert consumer().dead_letters_of("mail") is None
    assert consumer(dead_letter=True).dead_letters_of("mail") == "mail.dead"
    assert consumer(dead_letter="failed").dead_letters_of("mail") == "failed"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dead_letter": "q"}, "dead_letter must be another queue than 'q'"),
        ({"dead_letter": ""}, "dead_letter must be True, the name of a queue or None"),
        ({"dead_letter": 1.5}, "dead_letter must be True, the name of a queue or None"),
        ({"dead_letter": False}, "on_error='discard' loses failed messages"),
        ({"dead_letter": True, "no_ack": True}, "dead_letter must be None with no_ack"),
        ({"dead_letter": "x", "on_error": "requeue"}, "dead_letter must be None with on_error"),
        ({"dead_letter": "x", "on_error": "discard"}, "dead_letter must be None with on_error"),
        ({"on_error": "drop"}, "on_error must be 'dead_letter', 'reject', 'requeue', 'discard' or"),
        ({"retry": {"hold": "broker"}, "batch_size": 2}, "hold='broker' with batch_size"),
        ({"retry": {"hold": "nowhere"}}, "hold must be 'broker', 'process' or None"),
    ],
)
def test_where_failures_cannot_go(options: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        consumer(**options)


def test_type_checkers_know_all_options() -> None:
    known = BatchArguments.__required_keys__ | BatchArguments.__optional_keys__
    of_call = {"queues", "handler", "schema", "declares_names", "convert", "order", "is_sharded"}
    assert known | of_call == {each.name for each in fields(ConsumerOptions)}
