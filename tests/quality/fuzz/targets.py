"""What is fuzzed, and what must hold whatever comes.

A target is a strategy, a check that raises if a rule is broken, and a corpus: cases that are tried each
time, since they did break something or might.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from amqp import spec
from hypothesis import strategies as st

from greenconn import Connection
from greenconn.broker.consuming import StoreDelivery
from greenconn.broker.envelope import Base64
from greenconn.broker.port import Claimed
from greenconn.broker.queues import Declaration, is_name
from greenconn.compression import MAX_DECOMPRESSED_SIZE, compress, decompress, encoders
from greenconn.exceptions import AMQPError, DecodeError, KombuError
from greenconn.message import Message
from greenconn.serialization import loads
from greenconn.transport import beanstalk
from greenconn.transport.amqp.message import Delivery
from greenconn.transport.couchdb import api as couchdb
from greenconn.transport.hooks.channel import Message as StoredMessage
from greenconn.transport.mongodb import client as mongodb
from greenconn.transport.redis.envelope import Delivery as RedisDelivery
from greenconn.transport.redis.envelope import marked_redelivered
from greenconn.transport.redis.settling import priority_of, read_held
from greenconn.transport.SQS import store as sqs
from greenconn.url import (
    BrokerURL,
    mask_secrets,
    maybe_sanitize_url,
    parse_url,
    split_urls,
    url_to_parts,
)
from greenconn.wire.amqp import FrameParser
from greenconn.wire.resp import ProtocolError, RespParser
from tests.quality.fuzz import corpus
from tests.quality.fuzz.peers import converse, log_in, work
from tests.quality.fuzz.values import anything, as_json, cut, frames, method, mutated, table, texts

#: Far above what any case needs, far below what a bomb would like.
SMALL = 64 * 1024


@dataclass(frozen=True)
class Target:
    """Something that reads what untrusted peers send."""

    name: str
    cases: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    corpus: Sequence[Any]
    #: Cases of others for one of this.
    cost: int = 1


TARGETS: dict[str, Target] = {}

#: Replies that are whole, to whatever command.
_ODD_REPLIES = st.sampled_from(corpus.ODD_REPLIES) | st.recursive(
    st.sampled_from(corpus.ODD_REPLIES[:14]),
    lambda inner: st.builds(
        lambda mark, items: b"%b%d\r\n%b" % (mark, len(items), b"".join(items)),
        st.sampled_from([b"*", b"*", b"~"]),
        st.lists(inner, max_size=4),
    ),
    max_leaves=6,
)


def target(
    cases: st.SearchStrategy[Any], known: Sequence[Any], cost: int = 1
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Make a target of a check; it has the function's name."""

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        name = check.__name__
        TARGETS[name] = Target(name, cases, check, known, cost)
        return check

    return register


# AMQP


@target(
    st.tuples(mutated(frames.map(b"".join)), st.lists(st.integers(0, 20_000), max_size=4)),
    [(data, [at]) for data in corpus.FRAMES for at in (0, 1, 5, 9)],
)
def amqp_frames(case: tuple[bytes, list[int]]) -> None:
    """Frames of any kind and order, whole and in pieces, end in methods or in one of two errors."""
    data, places = case

    def outcome(pieces: list[bytes]) -> Any:
        parser = FrameParser(8192, SMALL)
        methods: list[Any] = []
        try:
            for piece in pieces:
                methods += parser.feed(piece)
        except AMQPError as exc:
            return type(exc), str(exc)
        return methods

    assert outcome([data]) == outcome(cut(data, places))


class _Channel:
    """A channel with one consumer."""

    no_ack_consumers = frozenset[str]()
    streams = frozenset[str]()


def read_all(message: Message) -> None:
    """Look at all that a program may look at; only what decoding may raise is raised, by decoding."""
    assert isinstance(message.properties, dict)
    assert isinstance(message.headers, dict)
    assert isinstance(message.delivery_info, dict)
    assert message.delivery_count >= 0
    assert isinstance(message.errors, list)
    assert repr(message)
    _ = (message.content_type, message.content_encoding, message.body)
    for accept in (None, {"application/json"}):
        message.accept = accept
        with suppress(KombuError):
            message.decode()


_BLOCKS = (
    st.builds(
        lambda flags, parts: flags + b"".join(parts),
        st.sampled_from([b"\xff\xfc", b"\x20\0", b"\xe0\0", b"\x80\0", b"\0\x40", b"\x04\0"])
        | st.binary(max_size=2),
        st.lists(st.binary(max_size=12) | table, max_size=6),
    )
    | table.map(lambda each: b"\x20\0" + each)
    | st.builds(lambda kind: b"\x80\0" + bytes((len(kind),)) + kind, st.binary(max_size=30))
)


@target(
    st.tuples(mutated(_BLOCKS), st.binary(max_size=30), st.binary(max_size=30)),
    [(block, b"\0\3key", b"{}") for block in corpus.PROPERTIES]
    + [(b"\0\0", route, b"{}") for route in corpus.ROUTES],
)
def amqp_properties(case: tuple[bytes, bytes, bytes]) -> None:
    """Property blocks of anything: what cannot be read is an error of decoding, and of nothing else."""
    block, route, body = case
    got = b"\0\x3c\0\x47" + bytes(8) + b"\0" + route + bytes(4)
    delivered = b"\0\x3c\0\x3c\3tag" + bytes(8) + b"\0" + route
    for arguments, tag in (
        (got, None),
        (delivered, "tag"),
        (got[:9], None),
        (delivered[:12], "tag"),
    ):
        for peeks in (True, False):
            message = Delivery(_Channel(), 1, arguments, bytes(12) + block, body, tag)
            if peeks:
                _ = message.headers
            with suppress(KombuError):
                message.decode()
            read_all(message)


_MOMENTS = [None, spec.Connection.StartOk, spec.Connection.TuneOk, spec.Connection.Open]


@target(
    st.tuples(st.sampled_from(_MOMENTS), mutated(frames.map(b"".join)) | method),
    [(moment, data) for moment in _MOMENTS for data in corpus.FRAMES + corpus.HANDSHAKES],
    cost=5,
)
def amqp_handshakes(case: tuple[Any, bytes]) -> None:
    """A login at a broker that says anything ends in one of the documented errors, or well."""
    log_in(*case)


@target(mutated(frames.map(b"".join)), corpus.FRAMES + corpus.METHODS, cost=5)
def amqp_connections(data: bytes) -> None:
    """A broker that says anything: each call ends as documented, each message can be looked at."""
    for message in work(data):
        if message is not None:
            read_all(message)


# Redis


@target(st.lists(_ODD_REPLIES, max_size=12), [[reply] * 20 for reply in corpus.ODD_REPLIES], cost=5)
def redis_connections(replies: list[bytes]) -> None:
    """A Redis that answers anything: each call ends as documented."""
    converse(replies)


_RESP = st.lists(
    st.sampled_from(
        [
            b"+OK\r\n",
            b":1\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"_\r\n",
            b"#t\r\n",
            b",inf\r\n",
            b"(12\r\n",
        ]
    )
    | st.builds(
        lambda mark, count: b"%c%d\r\n" % (mark, count),
        st.sampled_from(b"*~%>|$=!"),
        st.sampled_from([-2, -1, 0, 1, 2, 3, 100, 10**7, 2**31, 2**32, 2**63, 10**30]),
    )
    | st.binary(max_size=10).map(lambda each: b"$%d\r\n%b\r\n" % (len(each), each)),
    max_size=8,
).map(b"".join)


@target(
    st.tuples(mutated(_RESP), st.lists(st.integers(0, 300), max_size=5)),
    [(data, [at]) for data in corpus.REPLIES for at in (0, 1, 2, 5, 9)],
)
def redis_replies(case: tuple[bytes, list[int]]) -> None:
    """Bytes of any kind, whole and in pieces, are replies or one error; no long list is made."""
    data, places = case

    def outcome(pieces: list[bytes]) -> Any:
        parser = RespParser(reply_limit=SMALL)
        replies: list[Any] = []
        try:
            for piece in pieces:
                replies += map(repr, parser.feed(piece))
        except ProtocolError:
            replies += map(repr, parser.before_error)
            return replies, ProtocolError
        return replies

    assert outcome([data]) == outcome(cut(data, places))


_ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "body": anything | st.just("e30="),
        "content-type": anything | st.just("application/json"),
        "content-encoding": anything | st.just("utf-8"),
        "headers": anything
        | st.dictionaries(
            st.sampled_from(["compression", "x-death", "x-delivery-count", "redelivered", "CC"]),
            anything,
        ),
        "properties": anything
        | st.fixed_dictionaries(
            {},
            optional={
                "body_encoding": anything | st.just("base64"),
                "delivery_tag": anything,
                "priority": anything,
                "expiration": anything,
                "correlation_id": anything,
                "reply_to": anything,
                "delivery_info": anything
                | st.fixed_dictionaries(
                    {"exchange": anything, "routing_key": anything, "redelivered": anything}
                ),
            },
        ),
    },
)


@target(mutated(_ENVELOPES.map(as_json)) | anything.map(as_json), corpus.ENVELOPES)
def redis_envelopes(raw: bytes) -> None:
    """A message of Redis: it can always be looked at, given back and given up."""
    channel: Any = _Channel()
    read_all(RedisDelivery(channel, "gc.o.1", 1, raw, "queue"))
    again, count, envelope = marked_redelivered(raw)
    assert isinstance(again, bytes)
    assert count >= 0
    assert 0 <= priority_of(envelope) <= 9
    for value in (b"[" + raw + b', "", "queue"]', raw, b"[" + raw + b', "x", "y"]'):
        for name in ("gc.owner.1", "f00-ba4"):
            held = read_held(name, value)
            if held is not None:
                assert is_name(held.exchange)
                assert is_name(held.routing_key)
    assert isinstance(Declaration.read(raw).policy.is_bounded, bool)


@target(mutated(_ENVELOPES.map(as_json)) | anything.map(as_json), corpus.ENVELOPES)
def store_envelopes(raw: bytes) -> None:
    """The same for what the stores read: an envelope, or nothing."""
    text = raw.decode("latin-1")
    stored = [
        text,
        beanstalk._envelope(raw),
        couchdb._envelope({"payload": text}),
        mongodb.claimed_of({"_id": 1, "payload": raw}, 1, "q").envelope,
        sqs._envelope(text),
    ]
    channel: Any = _Channel()
    for each in stored:
        claimed = Claimed("q", each, 1, 0, raw)
        assert claimed.envelope is None or isinstance(claimed.envelope, dict)
        read_all(StoreDelivery(channel, "tag", 1, claimed))


class _Virtual(_Channel):
    """A channel of a transport with kombu's envelope."""

    def decode_body(self, body: Any, encoding: Any = None) -> Any:
        return Base64().decode(body) if encoding else body

    def encode_body(self, body: Any, encoding: Any = None) -> Any:
        return (Base64().encode(body) if encoding else body), encoding


@target(_ENVELOPES | anything, [{"properties": {}, "body": "\ud800"}, [], None, "text", 5])
def virtual_envelopes(envelope: Any) -> None:
    """The same in the memory of a virtual transport; it can be put back as well."""
    message = StoredMessage(envelope, _Virtual(), "queue")
    read_all(message)
    assert hash(message.delivery_tag) is not None
    assert isinstance(message.serializable(), dict)


# Bodies

_TYPES = st.sampled_from(
    [
        "application/json",
        "application/x-yaml",
        "application/x-msgpack",
        "text/plain",
        "application/data",
        "application/x-nobody",
        "",
    ]
)


@target(
    st.tuples(
        st.binary(max_size=60) | mutated(anything.map(as_json)) | texts,
        _TYPES | anything,
        st.sampled_from(["utf-8", "binary", "latin-1", "utf-16", "zlib", "idna"]) | anything,
    ),
    [
        (body, kind, "utf-8")
        for body in corpus.BODIES
        for kind in (
            "application/json",
            "application/x-yaml",
            "application/x-msgpack",
            "text/plain",
        )
        if len(body) < 2000 or kind != "application/x-yaml"  # which is slow, but not wrong
    ],
)
def bodies(case: tuple[Any, Any, Any]) -> None:
    """A body of any content type: a value, or an error of decoding; code is never run."""
    body, content_type, encoding = case
    accept = {"application/json", "application/x-yaml", "application/x-msgpack", "text/plain"}
    for accepted in (None, accept):
        with suppress(KombuError):
            loads(body, content_type, encoding, accept=accepted)


@target(
    st.tuples(
        anything | st.binary(max_size=30), anything, anything, st.dictionaries(texts, anything)
    ),
    [(b"{}", None, None, {"compression": each}) for each in corpus.COMPRESSIONS],
)
def messages(case: tuple[Any, Any, Any, dict[str, Any]]) -> None:
    """Properties and headers of any type in a message."""
    body, content_type, encoding, headers = case
    read_all(
        Message(
            body, 1, content_type, encoding, headers=headers, properties=dict(headers), channel=1
        )
    )


@target(
    st.tuples(
        mutated(
            st.tuples(st.binary(max_size=300), st.sampled_from(encoders())).map(
                lambda pair: compress(*pair)[0]
            )
        ),
        st.sampled_from(encoders()) | anything,
        st.integers(0, 400),
    ),
    [],
)
def compressed(case: tuple[bytes, Any, int]) -> None:
    """Compressed bodies that were spoiled, by the name of another compression, within a limit."""
    body, kind, limit = case
    try:
        assert len(decompress(body, kind, limit)) <= limit <= MAX_DECOMPRESSED_SIZE
    except DecodeError:
        pass


# URLs

_SECRET = "s3cr3tw0rd"
_URLS = st.builds(
    lambda scheme, user, rest: f"{scheme}://{user}:{_SECRET}@{rest}",
    st.sampled_from(["amqp", "amqps", "redis", "rediss", "sentinel", "memory", "redis+socket"])
    | st.text("abc+.:-/", max_size=8),
    st.text(max_size=8),
    st.text("abc.:/@[]?#;%0123456789=&é\0 \n", max_size=30)
    | st.builds(
        lambda name, value: f"h/v?{name}={value}",
        st.sampled_from(
            [
                "heartbeat",
                "ssl",
                "connect_timeout",
                "ssl_cert_reqs",
                "login_method",
                "password",
                "transport_options",
                "failover_strategy",
                "visibility_timeout",
                "nothing",
                "port",
            ]
        ),
        st.text(max_size=10),
    ),
) | st.text(max_size=30)


@target(_URLS, corpus.URLS)
def urls(url: str) -> None:
    """Whatever is given as a URL: an error names it without the password, and is of one type."""
    texts = []
    for parse in (parse_url, BrokerURL.parse, split_urls, _connection):
        try:
            parse(url)
        except (ValueError, KeyError) as exc:
            texts.append(f"{exc} {exc!r} {exc.__cause__!r}")
    if _has_password(url):
        texts += [mask_secrets(url), maybe_sanitize_url(url)]
        assert not [text for text in texts if _SECRET in text]


def _has_password(url: str) -> bool:
    """Whether the secret stands where a password does, or might."""
    if f":{_SECRET}@" not in url or url.count(_SECRET) > 1:
        return False
    try:
        return url_to_parts(url.strip()).password == _SECRET  # as Connection takes it
    except ValueError:
        return True


def _connection(url: str) -> None:
    connection = Connection(url)
    if _has_password(url):
        assert _SECRET not in f"{connection!r} {connection.as_uri()}"
