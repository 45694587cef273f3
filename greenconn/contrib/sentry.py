"""Sentry integration: transactions for messages, spans for publishes, and errors of handlers.

::

    import sentry_sdk
    from greenconn.contrib.sentry import instrument

    sentry_sdk.init(dsn=..., traces_sample_rate=0.1)
    instrument(app)

A trace continues from the publisher to the handler, by means of the headers ``sentry-trace`` and
``baggage``.  Errors are reported with the names of the queue and the exchange, the message id, and the
URL of the broker without its password.  Message bodies appear only in the local variables of stack
frames; pass ``include_local_variables=False`` to ``sentry_sdk.init`` to omit them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import sentry_sdk
from gevent import Timeout

from greenconn.defaults import default_connection
from greenconn.message import Message
from greenconn.service.app import AnyTarget, App
from greenconn.worker import Discard, RetryLater

__all__ = ["instrument"]

TRACE: Final = "sentry-trace"
BAGGAGE: Final = "baggage"
#: An attribute of errors that were reported; the library's log says them again.
REPORTED: Final = "_greenconn_reported"


def instrument(app: App) -> None:
    """Report the handlers, RPC functions and publishes of an application to Sentry.

    Context managers that the application registered before this call are entered before Sentry's, those
    registered later are entered after it.

    Arguments:
        app: the application to instrument.
    """
    sentry_sdk.get_global_scope().add_event_processor(_unless_reported)

    @app.around_handle
    def handled(message: Message | list[Message]) -> Iterator[None]:
        first = message[0] if isinstance(message, list) else message
        with sentry_sdk.isolation_scope() as scope:
            headers: dict[str, Any] = {
                name: first.headers[name]
                for name in (TRACE, BAGGAGE)
                if isinstance(first.headers.get(name), str)  # any publisher can write them
            }
            details = _details(app, first)
            transaction = sentry_sdk.continue_trace(
                headers,
                op="queue.process",
                name=details["messaging.destination.name"],
                source="task",
            )
            scope.set_context("message", details)
            with sentry_sdk.start_transaction(transaction):
                for name, value in details.items():
                    transaction.set_data(name, value)
                try:
                    yield
                except (RetryLater, Discard):
                    raise  # the handler has chosen this
                except (Exception, Timeout) as exc:
                    transaction.set_status("internal_error")
                    sentry_sdk.capture_exception(exc)
                    setattr(exc, REPORTED, True)
                    raise

    @app.around_publish
    def published(target: AnyTarget, body: Any, headers: dict[str, Any]) -> Iterator[None]:
        name = target if isinstance(target, str) else str(target.name)
        with sentry_sdk.start_span(op="queue.publish", name=name) as span:
            span.set_data("messaging.destination.name", name)
            for header, value in (
                (TRACE, sentry_sdk.get_traceparent()),
                (BAGGAGE, sentry_sdk.get_baggage()),
            ):
                if value:
                    headers.setdefault(header, value)
            yield


def _unless_reported(event: Any, hint: dict[str, Any]) -> Any:
    """Return *event*, or None if it is a log record about an error that was already reported."""
    error = (hint.get("exc_info") or (None, None))[1]
    is_ours = str(event.get("logger")).startswith("greenconn.")
    return None if is_ours and getattr(error, REPORTED, False) else event


def _details(app: App, message: Message) -> dict[str, Any]:
    """Return the attributes of a message that are reported."""
    delivery = message.delivery_info
    connection = app.connection or default_connection("consume")
    return {
        "messaging.destination.name": str(
            delivery.get("routing_key") or delivery.get("exchange") or ""
        ),
        "messaging.destination.exchange": str(delivery.get("exchange") or ""),
        "messaging.message.id": str(message.properties.get("message_id") or ""),
        "messaging.message.redelivered": bool(delivery.get("redelivered")),
        "messaging.broker": connection.as_uri(),
    }
