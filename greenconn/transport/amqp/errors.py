"""Errors of an AMQP broker, with remedies.

The texts are those of RabbitMQ 3.10 to 4.3.  A broker may permit by its configuration what its version
denies by default, so nothing is refused because of a version.
"""

from __future__ import annotations

from typing import Final

from amqp import spec
from amqp.exceptions import error_for_code

from greenconn.exceptions import AMQPError, ConnectionError
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.methods import ids_of, read_arguments

#: Part of the broker's text -> what the user can do.
_REMEDIES: Final = (
    (
        "Login was refused",
        "check user, password and permissions in the URL; guest may log in from the broker's own "
        "machine only",
    ),
    (
        "connection limit (",
        "close some, or raise the limit: rabbitmqctl set_vhost_limits and set_user_limits",
    ),
    (
        "NOT_ALLOWED - vhost",
        "check that the virtual host in the URL exists and the user may use it; "
        "the one that is named / is written as two slashes at the end",
    ),
    (
        "NOT_ALLOWED - access to vhost",
        "check that the virtual host in the URL exists and the user may use it: rabbitmqctl "
        "set_permissions -p vhost user '.*' '.*' '.*'",
    ),
    (
        " refused for user ",
        "rabbitmqctl list_user_permissions lists what that user may configure, write and read",
    ),
    ("inequivalent arg", "it exists with other arguments: use those, or delete it"),
    (
        "`transient_nonexcl_queues`",
        "this RabbitMQ does not permit queues that are neither durable nor exclusive: declare it with "
        "durable=True, and expires=... if it should be deleted when unused, or with exclusive=True",
    ),
    (
        "`global_qos`",
        "this RabbitMQ does not permit a prefetch for a whole channel: set it without apply_global",
    ),
    ("`queue_master_locator`", "leave out the queue argument x-queue-master-locator"),
    (
        "does not support global qos",
        "set the prefetch without apply_global; where the queue is declared on the same connection "
        "that is done for you",
    ),
    (
        "not supported by stream queues",
        "streams are read by consumers with an offset (spawn_consumer(offset=...), or the consumer "
        "argument x-stream-offset)",
    ),
    (
        "invalid arg 'x-max-priority'",
        "only classic queues have it: leave out max_priority, since a quorum queue has priorities of "
        "itself, or declare the queue with x-queue-type=classic",
    ),
    (
        "delivery acknowledgement on channel",
        "a message was not acknowledged within the broker's consumer timeout: ack sooner, "
        "lower the prefetch_count, or raise consumer_timeout",
    ),
    ("frame_max =", "RabbitMQ 4.1 and later need at least 8192: raise the option frame_max"),
)


_CLOSE: Final = ids_of(spec.Connection.Close)


def with_remedy(text: str) -> str:
    """Return the broker's *text*, followed by a remedy if one is known."""
    for words, remedy in _REMEDIES:
        if words in text:
            return f"{text} ({remedy})"
    return text


def closing_error(payload: bytes) -> BaseException:
    """Return the error that ``connection.close`` stands for."""
    code, text, class_id, method_id = read_arguments(_CLOSE, "BsBB", payload)
    # (0, 0) is no method, and would be shown as one.
    method = (class_id, method_id) if class_id else None
    error: BaseException = error_for_code(code, with_remedy(text), method, ConnectionError)
    return error


def opening_error(
    exc: BaseException, where: str, step: str, deadline: Deadline, hint: str = ""
) -> BaseException:
    """Return an error of the same class whose text names the broker and the step."""
    if isinstance(exc, TimeoutError) and exc.errno is None:
        if step == "connecting":
            return exc
        return TimeoutError(f"{where}: no reply within {deadline.timeout:g} s ({step})")
    if isinstance(exc, AMQPError):
        text = f"{exc.reply_text or exc} ({where}, {step})"
        error: BaseException = type(exc)(
            text, exc.method_sig, exc.method_name, exc.reply_code or None
        )
        return error
    if isinstance(exc, OSError):
        try:
            return type(exc)(exc.errno, f"{where}: {exc.strerror or exc} ({step}{hint})")
        except Exception:  # a class with arguments of its own
            return exc
    return exc
