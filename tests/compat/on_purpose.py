"""In what we differ from kombu on purpose, and why: names with wildcards -> the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

A_DETAIL: Final = "kombu's own use of something, which programs do not ask for"
BY_POSITION: Final = "the argument is given by position"
DRIVEN: Final = "a link reads, or looks, by itself, so nobody drives channels"
OWN_BROKER: Final = (
    "the memory broker is a broker, not a virtual channel over queues: memory.reset()"
)
OF_THE_READER: Final = "channels, links and messages are made by the transport, not by programs"
IN_INSTANCES: Final = "instances have it, the class has not"
OF_HUBS: Final = "a group has pools for each hub, so it is a mapping, but no dict"

OF_PARTS: Final = "it is made of parts, and inherits nothing from the amqp package"
OF_AMQP: Final = "the amqp package's own way to read, to wait and to keep heartbeats"
#: Names that amqp's channels and its connections share.
AMQPS_CHANNELS: Final = (
    *("auto_decode", "dispatch_method", "is_closing", "method_queue", "send_method", "then"),
    "wait",
)
#: Names that only its connections have.
AMQPS_CONNECTIONS: Final = (
    *(
        "Channel",
        "Transport",
        "__enter__",
        "__exit__",
        "blocking_read",
        "bytes_*",
        "channel_errors",
    ),
    *("channel_id", "client_heartbeat", "connect", "connection", "connection_errors"),
    *("drain_events", "frame_writer", "is_alive", "last_heartbeat_*", "on_inbound_*", "prev_*"),
    *("recoverable_*_errors", "send_heartbeat", "server_heartbeat", "sock", "transport"),
)

#: Module and name, with wildcards -> why it differs.
ON_PURPOSE: Final[Mapping[str, str]] = {
    "clocks.R_CLOCK": A_DETAIL,
    "compat.Consumer*.channel": IN_INSTANCES,
    "connection.*Connection.ensure_connection": "its arguments are spelled out",
    "connection.ChannelPool.close_after_fork": "every pool forgets in the child of a fork",
    "connection.ChannelPool.prepare": BY_POSITION,
    "connection.PooledConnection.__init__": "a pool makes one for each holder",
    "connection.ssl_available": "always true",
    "exceptions.BaseExceptionType": A_DETAIL,
    "log.naive_format_parts": A_DETAIL,
    "log.DISABLE_TRACEBACKS": "the environment is not read at import",
    "message.IS_PYPY": A_DETAIL,
    "*Message.errors": IN_INSTANCES,
    "messaging.Consumer.channel": IN_INSTANCES,
    "pidbox.W_PIDBOX_IN_USE": "a text of ours",
    "pools.ProducerPool.prepare": BY_POSITION,
    "pools.disable_limit_protection": "the environment is not read at import",
    "pools.connections": OF_HUBS,
    "pools.producers": OF_HUBS,
    "pools.Connections": OF_HUBS,
    "pools.Producers": OF_HUBS,
    "pools.PoolGroup": OF_HUBS,
    "serialization.NOTSET": A_DETAIL,
    "serialization.parenthesize_alias": A_DETAIL,
    "serialization.*able_insecure_serializers": "the default is written where kombu has a marker",
    "transport.TRANSPORT_ALIASES": "paths of ours; see test_aliases",
    "transport.*Transport.close_channel": BY_POSITION,
    "transport.*Transport.drain_events": "timeout is all that there is",
    "utils.*cached_property.__init__": "a property computes something",
    "utils.encoding.default_encoding_file": "set by set_default_encoding_file",
    "utils.functional.KEYWORD_MARK": A_DETAIL,
    "utils.json.*T": A_DETAIL,
    "utils.limits.TokenBucket.*": IN_INSTANCES,
    "utils.scheduling.CYCLE_ALIASES": "paths of ours",
    "utils.url.ssl_available": "always true",
    "mixins.W_CONN_*": A_DETAIL,
    # AMQP
    "transport.pyamqp.Channel.__init__": OF_THE_READER,
    "transport.pyamqp.Connection.__init__": OF_THE_READER,
    "transport.pyamqp.Message.__init__": OF_THE_READER,
    "transport.pyamqp.*Transport.get_manager": "its arguments are spelled out",
    "transport.pyamqp.*Transport.Connection": "a link, which does what amqp.Connection does",
    "transport.pyamqp.Channel": OF_PARTS,
    "transport.pyamqp.Connection": OF_PARTS,
    "transport.pyamqp.Ch*.channel_id": IN_INSTANCES,
    "transport.pyamqp.Ch*.connection": IN_INSTANCES,
    "transport.pyamqp.Co*.heartbeat": IN_INSTANCES,
    **{f"transport.pyamqp.C*.{name}": OF_AMQP for name in AMQPS_CHANNELS},
    **{f"transport.pyamqp.Connection.{name}": OF_AMQP for name in AMQPS_CONNECTIONS},
    "transport.pyamqp.SSLTransport.__init__": "the client is named",
    "transport.pyamqp.Connection.library_properties": "the broker is told our name",
    "transport.pyamqp.Channel.basic_publish*": "kombu's name for the message, as in its channels",
    "transport.pyamqp.Channel.basic_qos": "kombu's name of a_global, which is taken too",
    "transport.pyamqp.Channel.prepare_message": "messages are packed at once, without amqp's class",
    # Virtual
    "transport.virtual*.BrokerState.*": IN_INSTANCES,
    "transport.virtual*.Transport.channels": DRIVEN,
    "transport.virtual*.Transport.cycle": DRIVEN,
    "transport.virtual*.Transport.on_message_ready": DRIVEN,
    "transport.virtual*.Channel.basic_publish": "its options are spelled out",
    "transport.virtual*.exchange_types": "headers exchanges are there, too",
    "transport.virtual*.STANDARD_EXCHANGE_TYPES": "headers exchanges are there, too",
    "transport.virtual*.Transport.implements": "fan-out and headers work over plain queues, too",
    "transport.virtual.base.ARRAY_TYPE_H": A_DETAIL,
    "transport.virtual.base.*_FMT": A_DETAIL,
    "transport.virtual.base.W_NO_CONSUMERS": A_DETAIL,
    # Memory
    "transport.memory.Channel*": OWN_BROKER,
    "transport.memory.Transport.*": OWN_BROKER,
}
