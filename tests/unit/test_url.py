"""Broker URLs."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greenconn import Connection
from greenconn.url import (
    BrokerURL,
    as_url,
    mask_secrets,
    maybe_sanitize_url,
    parse_ssl_cert_reqs,
    parse_url,
    safequote,
    sanitize_url,
    split_urls,
    url_to_parts,
    urlparts,
)


def parts(scheme: str, **kwargs: Any) -> urlparts:
    empty = dict.fromkeys(urlparts._fields)
    return urlparts(**{**empty, "scheme": scheme, "query": {}, **kwargs})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://", parts("amqp")),
        ("memory://", parts("memory")),
        ("amqp://localhost//foo", parts("amqp", hostname="localhost", path="/foo")),
        ("amqp://localhost/foo", parts("amqp", hostname="localhost", path="foo")),
        ("amqp://localhost//", parts("amqp", hostname="localhost", path="/")),
        ("amqp://localhost/", parts("amqp", hostname="localhost")),
        ("amqp://localhost/%2Ffoo", parts("amqp", hostname="localhost", path="/foo")),
        ("redis://localhost:6379/", parts("redis", hostname="localhost", port=6379)),
        ("redis://:pw@h/1", parts("redis", hostname="h", password="pw", path="1")),
        ("AMQP://Host.Example/V", parts("amqp", hostname="host.example", path="V")),
        ("amqp://[::1]:5672//", parts("amqp", hostname="::1", port=5672, path="/")),
        ("amqp://[fe80::1%25eth0]/x", parts("amqp", hostname="fe80::1%eth0", path="x")),
        ("amqp://u@h", parts("amqp", hostname="h", username="u")),
        ("amqp://u:@h:/", parts("amqp", hostname="h", username="u")),
        ("amqp://h/a@b:c", parts("amqp", hostname="h", path="a@b:c")),
        ("amqp://h", parts("amqp", hostname="h")),
        (
            "amqp://h?ssl=1&heartbeat=10&no=",
            parts("amqp", hostname="h", query={"ssl": "1", "heartbeat": "10"}),
        ),
        (
            "amqp://guest:guest@localhost:5672//",
            parts(
                "amqp",
                hostname="localhost",
                port=5672,
                username="guest",
                password="guest",
                path="/",
            ),
        ),
        (
            "amqps://us%40er:p%2F%3A%23%3F%3Bw@h:1/a%20b",
            parts("amqps", hostname="h", port=1, username="us@er", password="p/:#?;w", path="a b"),
        ),
        ("amqp://u:^p{w}|<1>@h", parts("amqp", hostname="h", username="u", password="^p{w}|<1>")),
        (
            "redis+socket:///tmp/r.sock?virtual_host=3",
            parts("redis+socket", path="tmp/r.sock", query={"virtual_host": "3"}),
        ),
        (
            "sqla+mysql://u:p@h/db",
            parts("sqla+mysql", hostname="h", username="u", password="p", path="db"),
        ),
        (
            "sqla+PostgreSQL+psycopg2://u:p@h/db",
            parts("sqla+postgresql+psycopg2", hostname="h", username="u", password="p", path="db"),
        ),
        (
            "kombu.transport.pyamqplib.Transport://h",
            parts("kombu.transport.pyamqplib.Transport", hostname="h"),
        ),
        (
            "my_package.Mod:Transport://h/v",
            parts("my_package.Mod:Transport", hostname="h", path="v"),
        ),
    ],
)
def test_parts(url: str, expected: urlparts) -> None:
    assert url_to_parts(url) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost", "scheme is missing"),
        ("guest:SECRET@localhost", "scheme is missing"),
        ("amqp:/localhost", "scheme is missing"),
        ("amqp:localhost", "scheme is missing"),
        ("://localhost", "must be the name of a transport"),
        ("5672://localhost", "must be the name of a transport"),
        ("guest:SECRET@localhost://x", "must be the name of a transport"),
        ("amqp://h:99999/", "port must be a number from 0 to 65535"),
        ("amqp://h:65536/", "port must be a number from 0 to 65535"),
        ("amqp://h:-1/", "port"),
        ("amqp://h:56x72/", "port"),
        ("amqp://h:٣/", "port"),
        ("amqp://u:SEC/RET@h", "port.*%2F"),
        ("amqp://u:SEC?RET@h", "port.*%3F"),
        ("amqp://u:SEC#RET@h", "stray character '#'.*%23"),
        ("amqp://u:SEC RET@h", "stray character ' '.*%20"),
        (" amqp://h", "stray character ' '"),
        ("amqp://h\n", r"stray character '\\n'"),
        ("amqp://h/v\x00", "stray"),
        ("amqp://h\u00a0/", "stray"),
        ("amqp://ho^st/", r"stray character '\^' in the host"),
        ("amqp://[::1/", "invalid IPv6"),
        ("amqp://[::1]x/", "invalid IPv6"),
        ("amqp://[nope]/", "invalid IPv6"),
        ("amqp://[127.0.0.1]/", "invalid IPv6"),
        ("amqp://::1/", "in brackets"),
        ("amqp://h:1:2/", "invalid host or port"),
        ("amqp://::1]/", "invalid host or port"),
        ("amqp://u:SECRET%ff@h", "must be UTF-8"),
    ],
)
def test_bad_urls(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        url_to_parts(url)
    message = str(caught.value)
    assert message.startswith("broker URL ")
    assert "RET" not in message
    assert "; " in message  # and the remedy
    if "@" not in url:
        assert repr(mask_secrets(url))[1:-1] in message
    for call in (parse_url, sanitize_url, BrokerURL.parse):
        if call == BrokerURL.parse and url == "localhost":
            continue
        with pytest.raises(ValueError, match="broker URL"):
            call(url)


def test_parse_url() -> None:
    assert parse_url("amqp://user:pass@localhost:5672/my/vhost?connect_timeout=3") == {
        "transport": "amqp",
        "userid": "user",
        "password": "pass",
        "hostname": "localhost",
        "port": 5672,
        "virtual_host": "my/vhost",
        "connect_timeout": "3",
    }


def test_tls_options() -> None:
    url = (
        "rediss://h/0?ssl_cert_reqs=CERT_NONE&ssl_ca_certs=%2Fvar%2Fca.pem&ssl_check_hostname=False"
    )
    assert parse_url(url)["ssl"] == {
        "ssl_cert_reqs": ssl.CERT_NONE,
        "ssl_ca_certs": "/var/ca.pem",
        "ssl_check_hostname": False,
    }
    assert parse_url("amqp://h?ssl_check_hostname=1&ssl=1")["ssl"] == {"ssl_check_hostname": True}
    assert parse_url("amqp://h?ssl_check_hostname=0&ssl=0")["ssl"] == "0"
    with pytest.raises(ValueError, match="ssl_cert_reqs must be one of CERT_"):
        parse_url("amqp://h?ssl_cert_reqs=maybe")


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        ("CERT_REQUIRED", ssl.CERT_REQUIRED),
        ("optional", ssl.CERT_OPTIONAL),
        ("none", ssl.CERT_NONE),
    ],
)
def test_parse_ssl_cert_reqs(text: str, constant: ssl.VerifyMode) -> None:
    assert parse_ssl_cert_reqs(text) is constant


@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_parse_ssl_cert_reqs_of_an_unknown_name(error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        parse_ssl_cert_reqs("maybe")
    assert str(caught.value).endswith("got 'maybe'")


def test_option_that_is_a_part_of_the_url() -> None:
    with pytest.raises(ValueError, match="option 'password' is a part of the URL") as caught:
        parse_url("amqp://h?password=SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("https",), "https:///"),
        (("https", "e.com"), "https://e.com/"),
        (("https", "e.com", 80), "https://e.com:80/"),
        (("https", "e.com", 80, "u"), "https://u@e.com:80/"),
        (("https", "e.com", 80, "u", "pass"), "https://u:pass@e.com:80/"),
        (("https", "e.com", 80, None, "pass"), "https://:pass@e.com:80/"),
        (("https", "e.com", 80, None, None, "/p"), "https://e.com:80//p"),
        (("amqp", "::1", 5672, "a/b", "c@d", "v"), "amqp://a%2Fb:c%40d@[::1]:5672/v"),
    ],
)
def test_as_url(arguments: Any, expected: str) -> None:
    assert as_url(*arguments) == expected


def test_as_url_masks() -> None:
    assert as_url("a", "h", user="u", password="p", sanitize=True) == "a://u:**@h/"
    assert as_url("a", "h", user="u", password="p", sanitize=True, mask="") == "a://u:@h/"
    assert safequote("a/b:c") == "a%2Fb%3Ac"


def test_safequote_also_takes_the_arguments_of_quote() -> None:
    assert safequote(b"a/\xff") == "a%2F%FF"
    assert safequote("a/b:c", "/") == "a/b%3Ac"
    assert safequote("\xe9", encoding="latin-1") == "%E9"
    assert safequote("\xe9", encoding="ascii", errors="replace") == "%3F"


@given(st.text(), st.sampled_from(["", "/", ":", "/!$&'()*+,:=@~"]))
@example("azAZ09_.-~", "")
@example("/a/", "/")
def test_safequote_quotes_what_urllib_quotes(text: str, safe: str) -> None:
    assert safequote(text, safe) == quote(text, safe)


def test_sanitize_url() -> None:
    assert sanitize_url("pyamqp://u:SECRET@h:5672/my/v?x=SECRET") == "pyamqp://u:**@h:5672/my/v"
    assert sanitize_url("pyamqp://u:SECRET@h//", mask="xx") == "pyamqp://u:xx@h//"


@pytest.mark.parametrize("value", [None, 1, "localhost", ["amqp://u:p@h"]])
def test_maybe_sanitize_leaves_what_is_no_url(value: Any) -> None:
    assert maybe_sanitize_url(value) is value


def test_maybe_sanitize_url() -> None:
    assert maybe_sanitize_url("amqp://u:SECRET@h") == "amqp://u:**@h/"
    assert maybe_sanitize_url("amqp://u:SEC/RET@h") == "amqp://u:**@h"
    both = maybe_sanitize_url("amqp://u:SECRET@h/v?a=b;amqp://u:SECRET@g//")
    assert both == "amqp://u:**@h/v;amqp://u:**@g//"
    assert maybe_sanitize_url("amqp://u:SECRET@h;g") == "amqp://u:**@h;g"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("amqp://u:SECRET@h//", "amqp://u:**@h//"),
        ("amqp://u:SE:C@R/E#T@h", "amqp://u:**@h"),
        ("amqp://u:SEC;RET@h", "amqp://u:**@h"),
        ("amqp://u:S1@a;amqp://v:S2@b", "amqp://u:**@a;amqp://v:**@b"),
        ("amqp://u@h", "amqp://u@h"),
        ("amqp://u:SECRET", "amqp://u:**"),
        ("amqp://u:SEC/RET/v?x=1", "amqp://u:**?x=1"),
        ("amqp://h:5672/v:x", "amqp://h:5672/v:x"),
        ("amqp://h/v:x", "amqp://h/v:x"),
        ("amqp://::1/v", "amqp://::1/v"),
        ("amqp://[::1]:x/v", "amqp://[::1]:x/v"),
        ("mongodb://a:1,b,c:3/db?replicaSet=r", "mongodb://a:1,b,c:3/db?replicaSet=r"),
        ("mongodb://u:SEC,RET/db", "mongodb://u:**"),
        ("mongodb://u:12,34/db", "mongodb://u:**"),
        ("u:SECRET@h", "u:**@h"),
        ("redis://:SECRET@h?x=1&Password=SECRET&y=2", "redis://:**@h?x=1&Password=**&y=2"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_mask_secrets(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked
    assert mask_secrets(text, mask=r"\1") == masked.replace("**", r"\1")


def test_split_urls() -> None:
    assert split_urls("amqp://a;amqp://b") == ["amqp://a", "amqp://b"]
    assert split_urls(" amqp://a; b ;\n") == ["amqp://a", "b"]
    assert split_urls(["amqp://a;amqp://b", "amqp://c"]) == ["amqp://a", "amqp://b", "amqp://c"]
    assert split_urls(";") == split_urls([]) == split_urls("") == []
    with pytest.raises(ValueError, match=r"'amqp://u:\*\*@h': a member of the failover list.*%3B"):
        split_urls("amqp://u:SEC;RET@h")


@pytest.mark.parametrize(
    ("text", "expected", "safe"),
    [
        ("localhost", BrokerURL(hostname="localhost"), "localhost"),
        ("localhost:5672", BrokerURL(hostname="localhost", port=5672), "localhost:5672"),
        ("[::1]:5672", BrokerURL(hostname="::1", port=5672), "[::1]:5672"),
        ("amqp://", BrokerURL(transport="amqp"), "amqp:///"),
        (
            "amqp://u:SECRET@h//?ssl=1&heartbeat=",
            BrokerURL(
                transport="amqp",
                hostname="h",
                userid="u",
                password="SECRET",
                virtual_host="/",
                query={"ssl": "1", "heartbeat": ""},
            ),
            "amqp://u:**@h//",
        ),
        (
            "redis+socket:///tmp/r.sock?virtual_host=3&x=1",
            BrokerURL(
                transport="redis",
                inner_scheme="socket",
                socket_path="/tmp/r.sock",
                virtual_host="3",
                query={"x": "1"},
            ),
            "redis+socket:///tmp/r.sock",
        ),
        (
            "redis+socket://u:SECRET@/tmp/r",
            BrokerURL(
                transport="redis",
                inner_scheme="socket",
                userid="u",
                password="SECRET",
                socket_path="/tmp/r",
            ),
            "redis+socket://u:**@/tmp/r",
        ),
        (
            "sqla+sqlite:///a%20b.db",
            BrokerURL(transport="sqla", inner_scheme="sqlite", virtual_host="a b.db"),
            "sqla+sqlite:///a%20b.db",
        ),
        (
            "greenconn.transport.amqp:Transport://h",
            BrokerURL(transport="greenconn.transport.amqp:Transport", hostname="h"),
            "greenconn.transport.amqp:Transport://h/",
        ),
    ],
)
def test_broker_url(text: str, expected: BrokerURL, safe: str) -> None:
    url = BrokerURL.parse(text)
    assert url == expected
    assert hash(url) == hash(expected)
    assert url.safe == str(url) == safe
    assert "SECRET" not in repr(url)


def test_host_names_and_class_paths_are_not_urls() -> None:
    for text in ("user@host", "host/vhost", "host?ssl=1", "amqp:host", "ho st"):
        with pytest.raises(ValueError, match="broker URL"):
            BrokerURL.parse(text)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]{1,5})?", fullmatch=True)
hosts = names | st.ip_addresses().map(str)
ports = st.none() | st.integers(1, 65535)


@given(hosts, ports, st.none() | texts, st.none() | texts, st.none() | texts)
@settings(derandomize=True)
def test_round_trip(
    host: str, port: int | None, user: str | None, password: str | None, vhost: str | None
) -> None:
    path = safequote(vhost) if vhost else None
    url = as_url("amqp", host, port, user, password, path)
    expected = urlparts("amqp", host, port, user, password, vhost, {})
    assert url_to_parts(url) == expected
    broker = BrokerURL.parse(url)
    assert (broker.hostname, broker.port, broker.userid) == (host, port, user)
    assert (broker.password, broker.virtual_host) == (password, vhost)
    # The masked form is the same URL with another password.
    masked = url_to_parts(broker.safe)
    assert masked == expected._replace(password="**" if password else None)
    assert mask_secrets(url) == as_url("amqp", host, port, user, password, path, sanitize=True)


@given(st.text(max_size=30) | st.text("amqp:/@[]#?;%0123.", max_size=30).map("amqp://{}".format))
@settings(derandomize=True)
def test_any_text_parses_or_is_refused(text: str) -> None:
    refusal = "broker URL"
    try:
        BrokerURL.parse(text)
    except ValueError as exc:
        refusal = str(exc)
    assert refusal.startswith("broker URL")
    maybe_sanitize_url(text)
    mask_secrets(text)


def test_a_url_is_parsed_once_and_what_it_means_cannot_be_changed() -> None:
    url = BrokerURL.parse("amqp://host/v?heartbeat=5")
    assert BrokerURL.parse("amqp://host/v?heartbeat=5") is url
    with pytest.raises(TypeError):
        url.query["heartbeat"] = "6"  # type: ignore[index]
    with pytest.raises(AttributeError):
        url.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("url", ["amqp://u:SECRET@a,b//", "redis://a,b:6379/0"])
def test_a_comma_separates_no_brokers(url: str) -> None:
    for read in (BrokerURL.parse, Connection):
        with pytest.raises(
            ValueError, match=r"the host 'a,b' contains a comma; .*semicolons"
        ) as caught:
            read(url)
        assert "RET" not in str(caught.value)
    assert url_to_parts(url).hostname == "a,b"  # of what is not for brokers nobody knows
    assert Connection("mongodb://a,b/db").transport_cls == "mongodb"
