"""Small tools around connections, queues and consumers (kombu 5.7, ``kombu.common``)."""

from uuid import NAMESPACE_OID

from greenconn.common.broadcast import Broadcast
from greenconn.common.insurance import ignore_errors, insured, revive_connection
from greenconn.common.prefetch import PREFETCH_COUNT_MAX, QoS
from greenconn.common.receiving import drain_consumer, eventloop, itermessages
from greenconn.common.replying import collect_replies, send_reply
from greenconn.entity import maybe_declare
from greenconn.entity.declaration import declaration_cached
from greenconn.identity import generate_oid, get_node_id, oid_from, uuid

__all__ = [
    "NAMESPACE_OID",
    "PREFETCH_COUNT_MAX",
    "Broadcast",
    "QoS",
    "collect_replies",
    "declaration_cached",
    "drain_consumer",
    "eventloop",
    "generate_oid",
    "get_node_id",
    "ignore_errors",
    "insured",
    "itermessages",
    "maybe_declare",
    "oid_from",
    "revive_connection",
    "send_reply",
    "uuid",
]
