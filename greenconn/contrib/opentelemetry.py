"""OpenTelemetry instrumentation: spans and metrics that follow the semantic conventions for messaging.

::

    from greenconn.contrib.opentelemetry import GreenconnInstrumentor

    GreenconnInstrumentor().instrument()

The instrumentation is a listener (:mod:`greenconn.listeners`).  It covers the whole process: all
transports, and kombu's classes as well.  It provides:

- a span for each publish (``send``), for each call of a handler (``process``), for each message that the
  program fetches itself (``receive``), and for each ack, reject and requeue (``settle``);
- the trace context in the headers of messages, in the format of the program's propagators: by default
  ``traceparent`` and ``tracestate``, as in the instrumentations of Celery and other clients.  A handler
  runs in the context of its span;
- counters of sent and consumed messages, and histograms of the duration of publishes and handlers.

Spans and metrics contain no message bodies and no passwords.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlsplit

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from greenconn._version import __version__
from greenconn.exceptions import error_text
from greenconn.listeners import (
    ConfirmEvent,
    DeliverEvent,
    HandledEvent,
    Listener,
    PublishEvent,
    SettleEvent,
    add_listener,
    remove_listener,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider


__all__ = ["GreenconnInstrumentor"]

SCHEMA: Final = "https://opentelemetry.io/schemas/1.30.0"

SYSTEM: Final = "messaging.system"
OPERATION: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
ANONYMOUS: Final = "messaging.destination.anonymous"
MESSAGE_ID: Final = "messaging.message.id"
CONVERSATION_ID: Final = "messaging.message.conversation_id"
BODY_SIZE: Final = "messaging.message.body.size"
BATCH_COUNT: Final = "messaging.batch.message_count"
ROUTING_KEY: Final = "messaging.rabbitmq.destination.routing_key"
DELIVERY_TAG: Final = "messaging.rabbitmq.message.delivery_tag"
ERROR: Final = "error.type"
ADDRESS: Final = "server.address"
PORT: Final = "server.port"

RABBITMQ: Final = "rabbitmq"
#: Schemes of URLs whose system has another name; the others have their own.
SYSTEMS: Final = {
    "amqp": RABBITMQ,
    "amqps": RABBITMQ,
    "pyamqp": RABBITMQ,
    "librabbitmq": RABBITMQ,
    "rediss": "redis",
    "sentinel": "redis",
    "sqs": "aws_sqs",
    "valkeys": "valkey",
}
#: Seconds, as the conventions have them.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
#: Beginnings of names that the broker chooses, one for each connection or consumer.
CHOSEN: Final = ("amq.gen", "amq.rabbitmq.reply-to")

#: Where a message keeps the context of the span in which it was handled or received, and the attributes.
WITHIN: Final = "opentelemetry"

Attributes = dict[str, Any]


class GreenconnInstrumentor:
    """The instrumentation of this process.  All instances share the same state."""

    _tracing: ClassVar[_Tracing | None] = None

    @property
    def is_instrumented(self) -> bool:
        """Whether the process is instrumented."""
        return self._tracing is not None

    def instrument(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        """Start to create spans and metrics.  A second call does nothing.

        Arguments:
            tracer_provider: the provider of the tracer.  None uses the global provider, which may be set
                later.
            meter_provider: the provider of the meter.  None uses the global provider, which may be set
                later.
        """
        if self._tracing is None:
            GreenconnInstrumentor._tracing = tracing = _Tracing(tracer_provider, meter_provider)
            add_listener(tracing)

    def uninstrument(self) -> None:
        """Stop creating spans and metrics.  Spans that have begun end with their operation."""
        tracing, GreenconnInstrumentor._tracing = self._tracing, None
        if tracing is not None:
            remove_listener(tracing)


class _Tracing(Listener):
    """The listener that creates spans and metrics."""

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._tracer = trace.get_tracer("greenconn", __version__, tracer_provider, SCHEMA)
        meter = metrics.get_meter("greenconn", __version__, meter_provider, SCHEMA)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            "{message}",
            "Number of messages that the program tried to send to the broker.",
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages",
            "{message}",
            "Number of messages that were delivered to the program.",
        )
        self._operation_duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of a publish, including the wait for its confirm.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._process_duration = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "Duration of a handler.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        #: The spans that have begun, with the attributes of their metrics.
        self._sending: dict[PublishEvent, tuple[Span, Attributes]] = {}
        #: Those of handlers, with the token of the context that was set.
        self._processing: dict[DeliverEvent, tuple[Span, Attributes, Any]] = {}

    def on_publish(self, event: PublishEvent) -> None:
        """Start the span of a publish, and add its context to the headers."""
        destination = event.exchange or event.routing_key
        common = _common(event.connection, "publish", "send", destination)
        attributes = {
            **common,
            DESTINATION: _joined(event.exchange, event.routing_key),
            BODY_SIZE: event.size,
            **_of_message(event.properties),
        }
        if common[SYSTEM] == RABBITMQ and event.routing_key:
            attributes[ROUTING_KEY] = event.routing_key
        parent = context.get_current()
        if event.headers and not trace.get_current_span(parent).get_span_context().is_valid:
            # A message that is sent again (a retry, a dead letter, an outbox) stays in its trace.
            parent = _extracted(event.headers, parent)
        name = _span_name("publish", destination)
        span = self._tracer.start_span(name, parent, SpanKind.PRODUCER, attributes)
        propagate.inject(event.headers, trace.set_span_in_context(span, parent))
        self._sending[event] = (span, common)

    def on_confirm(self, event: ConfirmEvent) -> None:
        """End the span of a publish."""
        span, attributes = self._sending.pop(event.publish)
        _end(span, attributes, event.error)
        self._sent.add(1, attributes)
        self._operation_duration.record(event.duration, attributes)

    def on_deliver(self, event: DeliverEvent) -> None:
        """Start the span of a handler, or create the span of a message that the program fetched."""
        is_taken = event.handler is None
        operation = "receive" if is_taken else "process"
        common = _common(event.connection, operation, operation, event.queue)
        contexts = [_extracted(each.headers) for each in event.messages]
        origins = [trace.get_current_span(each).get_span_context() for each in contexts]
        links = [Link(each) for each in origins if each.is_valid]
        # A message goes on with the trace of its publisher.  A batch may have many, and what a program
        # takes belongs to what it does.
        goes_on = not is_taken and len(contexts) == 1 and bool(links)
        parent = contexts[0] if goes_on else context.get_current()
        span = self._tracer.start_span(
            _span_name(operation, event.queue),
            parent,
            SpanKind.CLIENT if is_taken else SpanKind.CONSUMER,
            {**common, **_of_delivery(event, common)},
            links,
        )
        within = trace.set_span_in_context(span, parent)
        for message in event.messages:
            message.__dict__[WITHIN] = (within, common)
        self._consumed.add(len(event.messages), common)
        if is_taken:
            span.end()
        else:
            self._processing[event] = (span, common, context.attach(within))

    def on_handled(self, event: HandledEvent) -> None:
        """End the span of a handler."""
        span, attributes, token = self._processing.pop(event.delivery)
        context.detach(token)
        _end(span, attributes, event.error)
        self._process_duration.record(event.duration, attributes)

    def on_settle(self, event: SettleEvent) -> None:
        """Create the span of an ack, reject or requeue, as a child of the span of the handler."""
        parent, common = event.message.__dict__.get(WITHIN, (None, {}))
        if parent is None:
            return  # it was delivered before this listened
        attributes = {**common, OPERATION: event.outcome, OPERATION_TYPE: "settle"}
        attributes.update(_of_message(event.message.properties))
        name = _span_name(event.outcome, common.get(DESTINATION, ""))
        self._tracer.start_span(name, parent, SpanKind.CLIENT, attributes).end()


# Attributes of metrics have few values each: the exchange or queue, and no routing key of a message.


def _common(connection: str, operation: str, kind: str, destination: str) -> Attributes:
    """Return the attributes that spans and metrics have in common."""
    common = {**_server(connection), OPERATION: operation, OPERATION_TYPE: kind}
    if destination.startswith(CHOSEN):
        common[ANONYMOUS] = True
    elif destination:
        common[DESTINATION] = destination
    return common


@lru_cache(maxsize=256)
def _server(url: str) -> Mapping[str, str | int]:
    """Return the attributes derived from the URL of a broker."""
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    found: dict[str, str | int] = {SYSTEM: SYSTEMS.get(scheme, scheme)}
    try:
        if parts.hostname:
            found[ADDRESS] = parts.hostname
        if parts.port:
            found[PORT] = parts.port
    except ValueError:
        pass  # a URL of another transport's own
    return found


def _of_message(properties: Mapping[str, Any]) -> Attributes:
    found = {
        MESSAGE_ID: properties.get("message_id"),
        CONVERSATION_ID: properties.get("correlation_id"),
    }
    return {name: str(value) for name, value in found.items() if value}


def _of_delivery(event: DeliverEvent, common: Attributes) -> Attributes:
    """Return the attributes that the span of a delivery has beside the common ones."""
    if len(event.messages) > 1:
        return {BATCH_COUNT: len(event.messages)}
    message = event.message
    info = message.delivery_info
    exchange, routing_key = str(info.get("exchange") or ""), str(info.get("routing_key") or "")
    queue = "" if event.queue == routing_key else event.queue
    attributes = {
        DESTINATION: _joined(exchange, routing_key, queue),
        **_of_message(message.properties),
    }
    if common[SYSTEM] == RABBITMQ:
        if routing_key:
            attributes[ROUTING_KEY] = routing_key
        if isinstance(message.delivery_tag, int):
            attributes[DELIVERY_TAG] = message.delivery_tag
    return attributes


def _joined(*names: str) -> str:
    return ":".join(filter(None, names))


def _span_name(operation: str, destination: str) -> str:
    is_chosen = not destination or destination.startswith(CHOSEN)
    return f"{operation} {'(anonymous)' if is_chosen else destination}"


def _extracted(headers: Mapping[str, Any], base: Context | None = None) -> Context:
    """Return the context that a publisher put into the headers of a message.

    Arguments:
        base: has the values for which there are no headers, such as the program's baggage; None: there
            are none.
    """
    # Other headers may have values that a propagator does not expect.
    return propagate.extract(
        {name: each for name, each in headers.items() if isinstance(each, str)}, base
    )


def _end(span: Span, attributes: Attributes, error: BaseException | None) -> None:
    """End a span, and add the error to it and to the attributes of its metrics."""
    if error is not None:
        kind = type(error)
        name = kind.__qualname__
        attributes[ERROR] = name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"
        span.set_attribute(ERROR, attributes[ERROR])
        span.set_status(Status(StatusCode.ERROR, error_text(error)))
        span.record_exception(error)
    span.end()
