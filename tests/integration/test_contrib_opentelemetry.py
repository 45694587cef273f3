"""Spans and metrics by the real SDK, of programs over brokers."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import copy_context
from itertools import pairwise
from typing import Any

import gevent
import pytest

from tests.receiving import consuming, delete

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import greenconn
from greenconn import Connection, Consumer, Exchange, Queue
from greenconn.contrib.opentelemetry import GreenconnInstrumentor
from tests.fix_wires import until

pytestmark = pytest.mark.halved

SOON = 90.0
COUNT = 40


class Telemetry:
    """What the SDK was given."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.tracers.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in that order."""
        return list(self.exporter.get_finished_spans())

    def of(self, operation: str) -> list[ReadableSpan]:
        """Return the spans of a type of operation."""
        return [each for each in self.spans if said(each)["messaging.operation.type"] == operation]

    def points(self, name: str) -> list[Any]:
        """Return the points of a metric."""
        found = self.reader.get_metrics_data()
        assert found is not None
        return [
            point
            for resource in found.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def said(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    found = dict(span.attributes or {})
    found.setdefault("messaging.operation.type", None)
    return found


def id_of(span: ReadableSpan) -> int:
    """Return the id of a span."""
    assert span.context is not None
    return int(span.context.span_id)


def trace_of(span: ReadableSpan) -> int:
    """Return the id of the trace of a span."""
    assert span.context is not None
    return int(span.context.trace_id)


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    instrumentor = GreenconnInstrumentor()
    instrumentor.instrument(tracer_provider=telemetry.tracers, meter_provider=telemetry.meters)
    assert GreenconnInstrumentor().is_instrumented
    yield telemetry
    instrumentor.uninstrument()
    assert not GreenconnInstrumentor().is_instrumented
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_trace_goes_through_handlers(
    connection: Connection, telemetry: Telemetry, unique: str
) -> None:
    first, second = f"{unique}.1", f"{unique}.2"

    def forward(body: Any, message: Any) -> None:
        mine = trace.get_current_span()
        assert baggage.get_baggage("customer") == f"c{body}"
        gevent.sleep(0.001 * (body % 5))  # others run meanwhile
        assert trace.get_current_span() is mine
        # In another greenlet, which gevent starts with an empty context.
        within = copy_context().run
        job = gevent.spawn(within, greenconn.publish, second, body, connection=connection)
        job.get(timeout=SOON)

    consumers = [
        greenconn.spawn_consumer(first, forward, connection=connection, concurrency=10),
        greenconn.spawn_consumer(second, lambda body, message: None, connection=connection),
    ]
    assert all(each.wait_ready(SOON) for each in consumers)

    def request(number: int) -> None:
        token = context.attach(baggage.set_baggage("customer", f"c{number}"))
        with telemetry.tracer.start_as_current_span(f"request {number}"):
            greenconn.publish(first, number, connection=connection, message_id=f"m{number}")
        context.detach(token)

    gevent.joinall([gevent.spawn(request, n) for n in range(COUNT)], SOON, raise_error=True)
    until(lambda: len(telemetry.of("settle")) == 2 * COUNT, SOON)
    assert all(each.stop(SOON) for each in consumers)

    requests = {trace_of(each): each for each in telemetry.spans if each.name.startswith("request")}
    assert len(requests) == COUNT
    for trace_id, root in requests.items():
        spans = [
            each for each in telemetry.spans if trace_of(each) == trace_id and each is not root
        ]
        by_name = {each.name: each for each in spans}
        assert sorted(by_name) == sorted(
            f"{operation} {queue}"
            for queue in (first, second)
            for operation in ("publish", "process", "ack")
        )
        chain = [root]
        for queue in (first, second):
            chain += [by_name[f"publish {queue}"], by_name[f"process {queue}"]]
            ack = by_name[f"ack {queue}"]
            assert ack.parent is not None
            assert ack.parent.span_id == id_of(chain[-1])
            assert ack.kind is SpanKind.CLIENT
        for parent, child in pairwise(chain):
            assert child.parent is not None
            assert child.parent.span_id == id_of(parent)
        assert [each.kind for each in chain[1:3]] == [SpanKind.PRODUCER, SpanKind.CONSUMER]
        assert [each.context.span_id for each in chain[2].links] == [id_of(chain[1])]
        number = root.name.split()[-1]
        assert {said(each)["messaging.message.id"] for each in chain[1:3]} == {f"m{number}"}

    sent = said(telemetry.of("send")[0])
    system = {"amqp": "rabbitmq"}.get(*[connection.as_uri().partition(":")[0]] * 2)
    assert sent["messaging.system"] == system
    assert sent["messaging.operation.name"] == "publish"
    assert sent["messaging.destination.name"] in (first, second)
    assert sent["messaging.message.body.size"] > 0
    assert ("server.address" in sent) is (system != "sqlite")
    assert "**" not in str(sent)
    if system == "rabbitmq":
        processed = said(telemetry.of("process")[0])
        assert processed["messaging.rabbitmq.destination.routing_key"] in (first, second)
        assert processed["messaging.rabbitmq.message.delivery_tag"] > 0
        assert isinstance(processed["server.port"], int)

    for name in ("messaging.client.sent.messages", "messaging.client.consumed.messages"):
        points = telemetry.points(name)
        assert sum(each.value for each in points) == 2 * COUNT
        names = {each.attributes["messaging.destination.name"] for each in points}
        assert names == {first, second}
    for name in ("messaging.client.operation.duration", "messaging.process.duration"):
        points = telemetry.points(name)
        assert sum(each.count for each in points) == 2 * COUNT
        assert all(each.sum > 0.0 and len(each.explicit_bounds) == 14 for each in points)
    delete(connection, first, second)


def test_a_kombu_program(connection: Connection, telemetry: Telemetry, unique: str) -> None:
    exchange = Exchange(unique, type="topic")
    queue = Queue(f"{unique}.all", exchange, routing_key="orders.#")
    seen = []

    def callback(body: Any, message: Any) -> None:
        seen.append(trace.get_current_span().get_span_context())
        if body == 2:
            message.reject()
            raise LookupError("no such order")
        message.ack()

    with Consumer(connection, queue, callbacks=[callback]):
        producer = connection.Producer(exchange=exchange)
        for number in range(3):
            producer.publish(number, routing_key=f"orders.{number}", correlation_id="c1")
        for _ in range(2):
            connection.drain_events(timeout=SOON)
        with pytest.raises(LookupError):
            connection.drain_events(timeout=SOON)
    sends, processes = telemetry.of("send"), telemetry.of("process")
    assert [each.name for each in sends] == [f"publish {unique}"] * 3
    assert said(sends[0])["messaging.destination.name"] == f"{unique}:orders.0"
    assert said(sends[0])["messaging.message.conversation_id"] == "c1"
    assert [each.name for each in processes] == [f"process {unique}.all"] * 3
    assert said(processes[0])["messaging.destination.name"] == f"{unique}:orders.0:{unique}.all"
    assert [each.span_id for each in seen] == [id_of(each) for each in processes]
    assert [each.parent.span_id for each in processes if each.parent] == list(map(id_of, sends))
    assert [each.name.split()[0] for each in telemetry.of("settle")] == ["ack", "ack", "reject"]
    assert [each.parent.span_id for each in telemetry.of("settle") if each.parent] == [
        id_of(each) for each in processes
    ]
    failed = processes[2]
    assert said(failed)["error.type"] == "LookupError"
    assert not failed.status.is_ok
    assert failed.events[0].name == "exception"
    durations = telemetry.points("messaging.process.duration")
    assert sum(each.count for each in durations if "error.type" in each.attributes) == 1
    delete(connection, queue.name)


def test_messages_that_a_program_takes(
    connection: Connection, telemetry: Telemetry, unique: str
) -> None:
    with connection.SimpleQueue(unique) as queue:
        queue.put(1)
        with telemetry.tracer.start_as_current_span("request") as request:
            queue.get(timeout=SOON).ack()
    (sent,), (received,), (ack,) = map(telemetry.of, ("send", "receive", "settle"))
    assert received.name == f"receive {unique}"
    assert received.kind is SpanKind.CLIENT
    assert received.parent is not None
    assert received.parent.span_id == request.get_span_context().span_id
    assert [each.context.span_id for each in received.links] == [id_of(sent)]
    assert ack.parent is not None
    assert ack.parent.span_id == id_of(received)
    delete(connection, unique)


def test_a_batch_has_links(connection: Connection, telemetry: Telemetry, unique: str) -> None:
    consumer = consuming(unique, lambda bodies, messages: None, connection=connection, batch_size=5)
    assert greenconn.publish_many(unique, range(5), connection=connection) == 5
    until(lambda: len(telemetry.of("settle")) == 5, SOON)
    assert consumer.stop(SOON)
    linked = [link.context.span_id for each in telemetry.of("process") for link in each.links]
    assert sorted(linked) == sorted(map(id_of, telemetry.of("send")))
    counts = [
        said(each).get("messaging.batch.message_count", 1) for each in telemetry.of("process")
    ]
    assert sum(counts) == 5
    delete(connection, unique)


def test_retries_and_dead_letters_stay_in_their_trace(
    connection: Connection, telemetry: Telemetry, unique: str
) -> None:
    def fail(body: Any, message: Any) -> None:
        raise LookupError("no such order")

    consumer = consuming(
        unique,
        fail,
        connection=connection,
        retry=greenconn.Retry(tries=2, delay=1, hold="broker"),
        dead_letter=True,
    )
    greenconn.publish(unique, {}, connection=connection)
    until(lambda: len(telemetry.of("settle")) == 2, SOON)
    assert consumer.stop(SOON)
    names = [each.name for each in telemetry.of("send")]
    assert names.count(f"publish {unique}.dead") == 1
    assert len(names) == 3
    assert len({trace_of(each) for each in telemetry.spans}) == 1
    delete(connection, unique, f"{unique}.dead")


def test_calls(connection: Connection, telemetry: Telemetry, unique: str) -> None:
    server = greenconn.rpc.spawn_server(unique, sum, connection=connection)
    assert server.wait_ready(SOON)
    with telemetry.tracer.start_as_current_span("request"):
        assert greenconn.rpc.call(unique, [1, 2], connection=connection) == 3
    until(lambda: len(telemetry.of("settle")) == 1, SOON)
    assert server.stop(SOON)
    call, reply = telemetry.of("send")
    (processed,) = telemetry.of("process")
    assert call.name == f"publish {unique}"
    assert reply.name == "publish (anonymous)"
    assert said(reply)["messaging.destination.anonymous"] is True
    assert reply.parent is not None
    assert reply.parent.span_id == id_of(processed)
    assert len({trace_of(each) for each in telemetry.spans}) == 1
    delete(connection, unique)


def test_a_publish_that_fails(amqp_url: str, telemetry: Telemetry, unique: str) -> None:
    with Connection(amqp_url) as connection, pytest.raises(greenconn.exceptions.Unroutable):
        greenconn.publish(unique, {}, connection=connection, declare=False)
    (sent,) = telemetry.of("send")
    assert said(sent)["error.type"] == "greenconn.exceptions.Unroutable"
    (point,) = telemetry.points("messaging.client.sent.messages")
    assert point.attributes["error.type"] == "greenconn.exceptions.Unroutable"


@pytest.mark.parametrize("headers", [{}, {"kind": "welcome"}])
def test_baggage_without_a_span_is_published(
    connection: Connection, telemetry: Telemetry, unique: str, headers: dict[str, str]
) -> None:
    token = context.attach(baggage.set_baggage("customer", "c1"))
    try:
        greenconn.publish(unique, {}, connection=connection, headers=headers, declare=True)
    finally:
        context.detach(token)
    found: list[object] = []
    consumer = greenconn.spawn_consumer(
        unique,
        lambda body, message: found.append(baggage.get_baggage("customer")),
        connection=connection,
    )
    until(lambda: bool(found), SOON)
    assert consumer.stop(SOON)
    assert found == ["c1"]
    delete(connection, unique)


def test_headers_of_other_programs(
    connection: Connection, telemetry: Telemetry, unique: str
) -> None:
    """A publisher with another instrumentation, and headers that mean nothing to a propagator."""
    theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    GreenconnInstrumentor().uninstrument()
    for value in (theirs, "nonsense", 7, [theirs]):
        headers = {"traceparent": value, "tracestate": 3, "baggage": ["x"]}
        greenconn.publish(unique, {}, connection=connection, headers=headers, declare=True)
    assert not telemetry.spans
    GreenconnInstrumentor().instrument(
        tracer_provider=telemetry.tracers, meter_provider=telemetry.meters
    )
    consumer = greenconn.spawn_consumer(unique, lambda body, message: None, connection=connection)
    until(lambda: len(telemetry.of("settle")) == 4, SOON)
    assert consumer.stop(SOON)
    parents = [each.parent for each in telemetry.of("process")]
    assert [each.span_id for each in parents if each is not None] == [0x00F067AA0BA902B7]
    delete(connection, unique)
