"""What to do about an error that RabbitMQ tells in words of its own.

The texts are those of RabbitMQ 3.10 to 4.3.  What a broker denies by its configuration cannot be known
before it says so, so nothing is refused on the strength of a version.
"""

from __future__ import annotations

from typing import Final

__all__ = ["with_remedy"]

#: Part of the broker's text -> what the user can do.
_REMEDIES: Final = (
    (
        "Login was refused",
        "check user, password and permissions in the URL; guest may log in from the broker's own "
        "machine only",
    ),
    (
        "connection limit (",
        "close some, or have the limit raised: rabbitmqctl set_vhost_limits and set_user_limits",
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
        "rabbitmqctl list_user_permissions says what that user may configure, write and read",
    ),
    ("inequivalent arg", "it exists with other arguments: use those, or delete it"),
    (
        "`transient_nonexcl_queues`",
        "this RabbitMQ does not permit queues that are neither durable nor exclusive: declare it with "
        "durable=True, and expires=... if it shall go by itself, or with exclusive=True",
    ),
    (
        "`global_qos`",
        "this RabbitMQ does not permit a prefetch for a whole channel: set it without apply_global",
    ),
    ("`queue_master_locator`", "leave the queue argument x-queue-master-locator out"),
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
        "delivery acknowledgement on channel",
        "a message was not answered for longer than the broker's consumer timeout: answer sooner, "
        "lower the prefetch_count, or raise consumer_timeout",
    ),
    ("frame_max =", "RabbitMQ 4.1 and later ask for 8192 at least: raise the option frame_max"),
)


def with_remedy(text: str) -> str:
    """The broker's *text*, followed by what can be done about it where we know."""
    for words, remedy in _REMEDIES:
        if words in text:
            return f"{text} ({remedy})"
    return text
