"""Cases that are tried each time: they broke something once, or look as if they could."""

from __future__ import annotations

import json
from struct import pack
from typing import Any, Final

DEEP: Final = 100_000


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


_DELIVER = _frame(1, 1, b"\0\x3c\0\x3c\3tag" + pack(">QB", 1, 0) + b"\0\3key")


def _header(size: int, block: bytes = b"\0\0") -> bytes:
    return _frame(2, 1, pack(">HHQ", 60, 0, size) + block)


FRAMES: Final = [
    _DELIVER + _header(4) + _frame(3, 1, b"body"),
    _DELIVER + _header(2**64 - 1) + _frame(3, 1, b"body"),
    _DELIVER + _header(4) + _frame(3, 1, b"longer than announced"),
    _DELIVER + _header(4) + _frame(3, 2, b"body"),
    _DELIVER + _DELIVER,
    _DELIVER + _frame(3, 1, b"body"),
    _header(4),
    _frame(3, 1, b"body"),
    _frame(1, 1, b""),
    _frame(1, 1, b"\0\x3c"),
    _frame(2, 1, b""),
    _frame(9, 0, b""),
    _frame(8, 5, b"not empty"),
    b"\x01\0\x01\xff\xff\xff\xff",
    b"\x01\0\x01\x7f\xff\xff\xff" + bytes(40),
    b"AMQP\0\1\0\0",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
]


def _method(channel: int, ids: tuple[int, int], arguments: bytes = b"") -> bytes:
    return _frame(1, channel, pack(">HH", *ids) + arguments)


#: Methods of the handshake that cannot be read, or make no sense.
HANDSHAKES: Final = [
    _method(0, (10, 10)),
    _method(0, (10, 10), b"\0\x09\xff\xff\xff\xff"),
    _method(0, (10, 10), b"\0\x09\0\0\0\x0b\1tT\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0"),
    _method(0, (10, 10), b"\0\x09\0\0\0\0\0\0\0\0\0\0\0\0"),
    _method(0, (10, 20), b"\0\0\0\4text"),
    _method(0, (10, 30)),
    _method(0, (10, 30), b"\0\1\0\0\0\1\0\0"),
    _method(0, (10, 30), bytes(8)),
    _method(0, (10, 41)),
    _method(0, (10, 50)),
    _method(0, (10, 50), b"\1\x40\3\xff\xff\xff\0\0\0\0"),
    _method(0, (10, 51)),
    _method(1, (20, 11), bytes(4)),
]

#: Methods on open channels that cannot be read, or that nobody asked for.
METHODS: Final = [
    *(
        _method(channel, ids, arguments)
        for ids in ((50, 11), (60, 72), (60, 80), (60, 30), (20, 40), (20, 20), (60, 21), (85, 11))
        for channel, arguments in (
            (1, b""),
            (2, b"\xff"),
            (3, b"\3\xff\xff\xff" + bytes(8)),
            (3, b"\xff" * 20),
        )
    ),
    _method(2, (60, 71), b"\0") + _header(0),
    _method(2, (60, 71), bytes(8) + b"\1\xff") + _header(0),
    _method(1, (60, 60)) + _header(0),
    _method(1, (60, 60), b"\xff") + _header(0),
    _method(1, (60, 60), b"\3tag") + _header(0),
    _method(3, (60, 50), b"\1") + _header(0),
    _method(0, (60, 60), b"\3tag" + bytes(9)) + _header(0),
    _method(0, (10, 60)),
    _method(0, (10, 60), b"\xffshort"),
    _method(0, (10, 60), b"\3\xff\xff\xff"),
    _method(0, (10, 71)),
    _method(0, (10, 50)),
    _method(0, (10, 50), b"\xff\xff\1\xff" + bytes(4)),
    _method(0, (99, 99)),
    _method(1, (99, 99)),
    _method(77, (60, 60), b"\3tag" + bytes(11))
    + _frame(2, 77, pack(">HHQ", 60, 0, 2**29) + b"\0\0"),
]


def _nested(depth: int) -> bytes:
    """An array in an array in an array..."""
    # Lengths need four bytes each: they are written from the inside.
    value = b"V"
    for _ in range(depth):
        value = b"A" + pack(">I", len(value)) + value
    return value


def _table(*fields: tuple[bytes, bytes]) -> bytes:
    content = b"".join(bytes((len(name),)) + name + value for name, value in fields)
    return b"\x20\0" + pack(">I", len(content)) + content


#: Property blocks: 16 flags and the values.
PROPERTIES: Final = [
    b"",
    b"\xff",
    b"\xff\xff",
    b"\xff\xfc" + bytes(14),
    b"\x80\0\xffshort",
    b"\x80\0\3\xff\xfe\xfd",
    b"\x40\0\5utf\x008",
    b"\x40\0\x08punycode",
    b"\0\x40\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x20\0\xff\xff\xff\xff",
    b"\x20\0\0\0\0\3\1xQ",
    _table((b"x", _nested(3000))),
    _table((b"t", b"T\xff\xff\xff\xff\xff\xff\xff\xff"), (b"u", b"T\0\0\1\0\0\0\0\0")),
    _table((b"D", b"D\xff\x7f\xff\xff\xff")),
    _table((b"\xff\xfe", b"S\0\0\0\2\xff\xfe")),
    _table((b"compression", b"V")),
    _table((b"compression", b"A\0\0\0\0")),
    _table((b"compression", b"F\0\0\0\0")),
    _table((b"compression", b"t\1")),
    _table((b"x-death", b"S\0\0\0\1x"), (b"x-delivery-count", b"S\0\0\0\1x")),
]

#: What follows the flag "redelivered": exchange and routing key.
ROUTES: Final = [b"", b"\0", b"\xff", b"\3\xff\xfe\xfd\2\xff\xfe", b"\0\xffx", b"\5short"]

REPLIES: Final = [
    b"*4294967295\r\n",
    b"*1000000\r\n",
    b"*99999999999999999999\r\n",
    b"+fine\r\n*2147483647\r\n*2147483647\r\n",
    b"$12\r\n*99999999\r\n\r\n\r\n+next\r\n",
    b"~10000000\r\n",
    b"%10000000\r\n",
    b">10000000\r\n",
    b"|10000000\r\n+x\r\n",
    b"*1\r\n" * 20,
    b"%1\r\n*0\r\n+x\r\n",
    b"$2147483647\r\nabc",
    b"$-5\r\n",
    b"$99999999999999999999999\r\n",
    b"HTTP/1.1 400 Bad Request\r\n",
    b"\0\0\0\0",
    b"+" + b"x" * 70_000 + b"\r\n",
]

#: Whole replies of many kinds.
ODD_REPLIES: Final = [
    b"+OK\r\n",
    b"+\r\n",
    b":0\r\n",
    b":1\r\n",
    b":-1\r\n",
    b":9223372036854775807\r\n",
    b"$-1\r\n",
    b"_\r\n",
    b"$0\r\n\r\n",
    b"$3\r\n\xff\xfe\xfd\r\n",
    b"$3\r\nabc\r\n",
    b"#t\r\n",
    b",nan\r\n",
    b"(123456789012345678901234567890\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"%0\r\n",
    b"~0\r\n",
    b"%1\r\n+a\r\n*0\r\n",
    b"*2\r\n*0\r\n*0\r\n",
    b"*1\r\n:5\r\n",
    b"*2\r\n$1\r\na\r\n_\r\n",
    b"-ERR no\r\n",
    b"-NOSCRIPT no\r\n",
    b"-\r\n",
    b"-OOM no\r\n",
    b"-MOVED 1 h:1\r\n",
    b"-LOADING\r\n",
    b"-ERR Protocol error: x\r\n",
    b">0\r\n:1\r\n",
    b">1\r\n+invalidate\r\n:1\r\n",
    b">2\r\n+invalidate\r\n:5\r\n:1\r\n",
    b">2\r\n+invalidate\r\n*2\r\n*0\r\n:1\r\n:1\r\n",
    b">2\r\n+invalidate\r\n_\r\n:1\r\n",
    b">3\r\n+message\r\n+x\r\n+y\r\n:1\r\n",
    b":1\r\n:1\r\n",
    b"",
]

_DEEP_ARRAY = b"[" * DEEP + b"]" * DEEP
_DEEP_OBJECT = b'{"a":' * DEEP + b"1" + b"}" * DEEP


def _envelope(**parts: Any) -> bytes:
    whole = {
        "body": "e30=",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "t",
            "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": "q"},
        },
    }
    return json.dumps({**whole, **parts}).encode()


def _properties(**parts: Any) -> bytes:
    return _envelope(properties={**json.loads(_envelope())["properties"], **parts})


_TYPES: list[Any] = ["bytes", "base64", "decimal", "uuid", "datetime", "date", "time", "x", [], 5]
_VALUES: list[Any] = [5, "x", "\ud800", [], {}, {"int": -1}, None]
#: Typed values that are none.
TYPED: Final[list[dict[str, Any]]] = [
    {"__type__": name, "__value__": value} for name in _TYPES for value in _VALUES
]

#: What may lie in a list of Redis.
ENVELOPES: Final = [
    *(_envelope(headers={"x": typed}) for typed in TYPED[::4]),
    b"",
    b"\0",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"1e999",
    b"NaN",
    b"[1, 2, 3]",
    b'["a", [], {}]',
    b'[{}, "\\ud800", "\\ud800"]',
    b"{" * 50,
    _DEEP_ARRAY,
    _DEEP_OBJECT,
    b'{"properties": {}, "headers": ' + _DEEP_OBJECT + b"}",
    b'{"body": ' + _DEEP_ARRAY + b', "properties": {}}',
    b"9" * 5000,
    _envelope(body=None),
    _envelope(body=5),
    _envelope(body={}),
    _envelope(body="not base64!"),
    _envelope(body="\ud800"),
    _envelope(headers=5),
    _envelope(headers="text"),
    _envelope(headers=[1]),
    _envelope(headers={"compression": ["x"]}),
    _envelope(headers={"compression": "zlib"}),
    _envelope(headers={"x-death": 5, "x-delivery-count": "many", "CC": 5, "BCC": [[], 1]}),
    _envelope(headers={"x-death": [{"queue": "q", "reason": "rejected"}]}),
    _envelope(headers={"x-delivery-count": 1e999}),
    _envelope(properties=None),
    _envelope(properties=[]),
    _envelope(properties="text"),
    _envelope(**{"content-type": ["list"]}),
    _envelope(**{"content-type": {"a": 1}}),
    _envelope(**{"content-type": "application/x-python-serialize"}),
    _envelope(**{"content-encoding": ["list"]}),
    _envelope(**{"content-encoding": "utf-8\0"}),
    _properties(priority=1e999),
    _properties(priority=[]),
    _properties(priority=-5),
    _properties(delivery_info=5),
    _properties(delivery_info=[1]),
    _properties(delivery_info={"exchange": 5, "routing_key": []}),
    _properties(delivery_info={"exchange": "", "routing_key": "\ud800"}),
    _properties(delivery_info={}),
    _properties(body_encoding=5),
    _properties(body_encoding="rot13"),
    _properties(delivery_tag=[], correlation_id={}, reply_to=[5], expiration="soon"),
    json.dumps(
        {"durable": True, "auto_delete": 0, "owner": [], "arguments": {"x-expires": 10**400}}
    ).encode(),
]

#: YAML: 300 mappings that merge one of 1,000 keys.
WIDE_MERGE: Final = b"a: &a {%b}\n%b" % (
    b", ".join(b"k%d: 1" % number for number in range(1000)),
    b"".join(b"b%d: {<<: *a}\n" % number for number in range(300)),
)

#: Bodies for all content types.
BODIES: Final = [
    b"",
    b"\xff",
    _DEEP_ARRAY,
    _DEEP_OBJECT,
    b"9" * 100_000,
    *(json.dumps(typed).encode() for typed in TYPED),
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 100_000,
    b"\x81\x90\x01",
    b"!!python/object/apply:os.system [true]",
    b"a: &a [*a]",
    b"a0: &a0 {x: 1, y: 2, z: 3}\n"
    + b"".join(
        b"a%d: &a%d {<<: [%b]}\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 9))
        for level in range(1, 12)
    ),
    # PyYAML merges each key of the former only once since 6.0.4; those of this one have to be copied.
    WIDE_MERGE,
    b"[" * 5000,
    b"? " * 3000,
    b"cos\nsystem\n(S'true'\ntR.",
]

#: Values of the header ``compression``.
COMPRESSIONS: Final[list[Any]] = [
    5,
    [],
    {},
    True,
    1.5,
    "nothing",
    b"zlib",
    "zlib",
    ("a",),
    "\ud800",
]

URLS: Final = [
    "",
    "://",
    "amqp://",
    "amqp://u:s3cr3tw0rd@h:99999//",
    "amqp://u:s3cr3tw0rd@h:port//",
    "amqp://u:s3cr3tw0rd@[::1//",
    "amqp://u:s3cr3tw0rd@h/%ff",
    "amqp://u:s3cr3tw0rd@h%ff/",
    "amqp://u:s3cr3tw0rd@h//?heartbeat=soon",
    "amqp://u:s3cr3tw0rd@h//?ssl_cert_reqs=maybe",
    "amqp://u:s3cr3tw0rd@h//?nothing=1",
    "amqp://u:s3cr3tw0rd@h//;redis://h",
    "amqp://u:s3cr3tw0rd@h//;x@y",
    "nothing://u:s3cr3tw0rd@h//",
    "a.b:c://u:s3cr3tw0rd@h//",
    "redis+socket://u:s3cr3tw0rd@h/x",
    "redis://u:s3cr3tw0rd@h/notanumber",
    "amqp://u:s3cr3tw0rd@h\0/",
    "amqp:///:s3cr3tw0rd@ ",  # a virtual host of that name
    "\ud800://u:s3cr3tw0rd@h",
    "amqp://u:s3cr3tw0rd@h//" + "x" * 10_000,
]
