"""What a URL and the keywords mean together."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from greenconn.connection import Connection
from greenconn.options import BROKER_HEARTBEAT
from greenconn.session.broker import Parameters, combined
from greenconn.transport import get_transport_cls
from greenconn.transport.base import Transport


class Foreign(Transport[Any]):
    """A transport that does not tell its options."""


class ParsesItself(Transport[Any]):
    """A transport that is given its URLs whole."""

    can_parse_url = True


def of(address: str | None, **keywords: Any) -> Parameters:
    return combined(address, Parameters(**keywords), is_first=True)[0]


def test_a_url_gives_all_it_has() -> None:
    parameters = of("amqp://me:pa%2Fss@broker:5673/host%2F1")
    assert parameters == Parameters(
        transport="amqp",
        userid="me",
        password="pa/ss",
        hostname="broker",
        port=5673,
        virtual_host="host/1",
    )


def test_keywords_fill_what_a_url_leaves_blank() -> None:
    parameters = of("amqp://broker", userid="me", password="x", port=99, virtual_host="v")
    assert (parameters.hostname, parameters.userid, parameters.password) == ("broker", "me", "x")
    assert (parameters.port, parameters.virtual_host) == (99, "v")
    assert of("amqp://you:y@broker:1/w", userid="me", password="x", port=99).userid == "you"


@pytest.mark.parametrize(
    ("address", "hostname", "port"),
    [
        ("broker", "broker", 7),
        ("broker:5673", "broker", 5673),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]:5673", "::1", 5673),
        ("::1", "::1", 7),
        ("/var/lib/queue.db", "/var/lib/queue.db", 7),
        (None, None, 7),
    ],
)
def test_a_host_name_takes_the_place_of_the_host(
    address: str | None, hostname: str | None, port: int
) -> None:
    parameters = of(address, userid="me", port=7)
    assert (parameters.hostname, parameters.port, parameters.userid) == (hostname, port, "me")


def test_the_transport_keyword_wins_over_the_first_scheme_only_as_a_class_later() -> None:
    assert of("amqp://x", transport="memory").transport == "memory"
    later = combined("amqp://x", Parameters(transport="memory"))[0]
    assert later.transport == "amqp"
    assert combined("amqp://x", Parameters(transport=Foreign))[0].transport is Foreign


def test_options_in_a_url_are_typed() -> None:
    parameters, whole = combined(
        "amqp://x?heartbeat=30&connect_timeout=1.5&login_method=EXTERNAL&confirm_publish=yes"
        "&frame_max=8192&max_retries=3&failover_strategy=shuffle",
        Parameters(transport_options={"locale": "de"}),
        is_first=True,
    )
    assert (parameters.heartbeat, parameters.connect_timeout) == (30, 1.5)
    assert parameters.login_method == "EXTERNAL"
    assert parameters.transport_options == {
        "locale": "de",
        "confirm_publish": True,
        "frame_max": 8192,
        "max_retries": 3,
    }
    assert whole == {"failover_strategy": "shuffle"}


def test_without_options_in_the_url_the_dict_is_the_users() -> None:
    options = {"locale": "de"}
    assert of("amqp://x", transport_options=options).transport_options is options
    of("amqp://x?frame_max=8192", transport_options=options)
    assert options == {"locale": "de"}


def test_unknown_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'confirm_publisch'.*did you mean 'confirm_publish'"):
        of("amqp://x?confirm_publisch=1")
    with pytest.raises(ValueError, match="heartbeat"):
        of("amqp://x?heartbeat=soon")


def test_a_foreign_transport_gets_unknown_options_as_text() -> None:
    parameters = of("amqp://x?polling=3&heartbeat=3", transport=Foreign)
    assert parameters.transport_options == {"polling": "3"}
    assert parameters.heartbeat == 3


@pytest.mark.parametrize(
    ("address", "given", "expected"),
    [
        ("amqp://x", False, False),
        ("amqp://x?ssl=1", False, True),
        ("amqp://x?ssl=0", True, False),
        ("amqp://x?ssl=1", {"certfile": "c"}, {"certfile": "c"}),
        ("amqp://x?ssl_ca_certs=f", False, {"ssl_ca_certs": "f"}),
        (
            "amqp://x?ssl=1&ssl_ca_certs=f",
            {"certfile": "c"},
            {"certfile": "c", "ssl_ca_certs": "f"},
        ),
        ("amqp://x?ssl=0&ssl_ca_certs=f", False, False),
        ("amqp://x?ssl_check_hostname=no", False, {"ssl_check_hostname": False}),
        ("amqps://x", False, True),
        ("amqps://x", {"certfile": "c"}, {"certfile": "c"}),
    ],
)
def test_tls(address: str, given: Any, expected: Any) -> None:
    assert of(address, ssl=given).ssl == expected


@pytest.mark.parametrize("server", ["redis", "valkey"])
@pytest.mark.parametrize("kind", ["", "+cluster", "+sentinel"])
@pytest.mark.parametrize("is_secure", [False, True])
def test_redis_and_valkey_have_the_same_schemes(server: str, kind: str, is_secure: bool) -> None:
    scheme = f"{server}{'s' * is_secure}{kind}"
    parameters = of(f"{scheme}://u:SECRET@h:1/0")
    assert (parameters.transport, parameters.hostname) == (scheme, "h")
    assert parameters.ssl is is_secure
    assert get_transport_cls(scheme) is get_transport_cls(f"redis{kind}")
    shown = Connection(f"{scheme}://u:SECRET@h:1/0;{scheme}://u:SECRET@i:1/0").as_uri()
    assert shown == f"{scheme}://u:**@h:1/0"


def test_a_scheme_with_a_plus_is_the_transports_to_parse() -> None:
    parameters = of("redis+socket:///run/broker.sock?virtual_host=3", port=1)
    assert parameters.uri_prefix == "redis"
    assert parameters.transport == "redis"
    assert parameters.hostname == "socket:///run/broker.sock?virtual_host=3"


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("redis+tls://u:SECRET@h/0", r"did you mean rediss://host\?"),
        ("redis+ssl://u:SECRET@h/0", r"did you mean rediss://host\?"),
        ("valkey+tls://u:SECRET@h/0", r"did you mean valkeys://host\?"),
        ("sentinel+tls://u:SECRET@h/0", r"did you mean sentinel://host\?ssl=1\?"),
        ("redis+unix://u:SECRET@h/0", r"did you mean redis://host or redis\+socket://\?"),
        ("amqp+ssl://u:SECRET@h", r"did you mean amqps://host\?"),
        ("amqps+x://u:SECRET@h", r"did you mean amqps://host\?"),
        ("sqs+https://u:SECRET@h", r"did you mean sqs://host\?"),
        ("couchdb+x://u:SECRET@h", r"couchdb\+http:// or couchdb\+https://\?"),
        ("mongodb+x://u:SECRET@h", r"mongodb\+srv://\?"),
        ("beanstalk+tcp://u:SECRET@h", "beanstalk://host"),
        ("sqlite+x://u:SECRET@h/x", "sqlite://host"),
        ("memory+x://u:SECRET@h", "memory://host"),
    ],
)
def test_an_unknown_inner_scheme_is_refused(url: str, meant: str) -> None:
    with pytest.raises(ValueError, match=meant) as raised:
        of(url)
    assert "SECRET" not in str(raised.value)


def test_a_host_that_is_a_url_is_shown_without_its_password() -> None:
    shown = repr(of("redis+socket://u:SECRET@/run/broker.sock?virtual_host=3"))
    assert "SECRET" not in shown
    assert "hostname='socket://u:**@/run/broker.sock'" in shown


def test_a_transport_may_parse_its_urls_itself() -> None:
    url = "amqp://me:x@a,b/db?replicaSet=r"
    assert of(url, transport=ParsesItself).hostname == url


@pytest.mark.parametrize("scheme", ["os.path", "os:path", "os.path+x"])
def test_a_url_names_no_module_to_import(scheme: str) -> None:
    with pytest.raises(ValueError, match="import path") as raised:
        of(f"{scheme}://me:secret@x")
    assert "secret" not in str(raised.value)


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(KeyError, match="Did you mean amqp"):
        of("amqq://x")


def test_equal_parameters_have_equal_keys() -> None:
    one, other = of("amqp://me:x@h/v"), of("amqp://me:x@h/v")
    assert one.key() == other.key()
    assert hash(one.key()) == hash(other.key())


@pytest.mark.parametrize(
    "address",
    [
        "amqp://me:y@h/v",
        "amqp://you:x@h/v",
        "amqp://me:x@i/v",
        "amqp://me:x@h/w",
        "amqps://me:x@h/v",
    ],
)
def test_each_difference_makes_another_key(address: str) -> None:
    assert of(address).key() != of("amqp://me:x@h/v").key()
    assert of("amqp://me:x@h/v", transport_options={"a": 1}).key() != of("amqp://me:x@h/v").key()


def test_functions_that_give_passwords_are_compared_as_such() -> None:
    def first() -> str:
        return "x"

    def second() -> str:
        return "x"

    assert of("h", password=first).key() == of("h", password=first).key()
    assert of("h", password=first).key() != of("h", password=second).key()
    assert of("h", password=first).key() != of("h", password="x").key()


def test_no_text_shows_a_secret() -> None:
    parameters = of("amqp://me:secret@h", ssl={"password": "secret"})
    assert "secret" not in repr(parameters)
    assert "secret" not in repr(parameters.key())


def test_parameters_can_be_pickled() -> None:
    parameters = of("amqp://me:secret@h")
    assert pickle.loads(pickle.dumps(parameters)) == parameters
    assert pickle.loads(pickle.dumps(parameters)).heartbeat is BROKER_HEARTBEAT


@pytest.mark.parametrize(
    "address", ["+://u:pass-word@h", "+amqp://u:pass-word@h", "://u:pass-word@h"]
)
def test_a_url_that_names_no_transport_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="transport") as caught:
        combined(address, Parameters(), is_first=True)
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("port", ["abc", 65536, -1, [1]])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    with pytest.raises(ValueError, match=r"port must be a number from 1 to 65535, got ") as raised:
        Parameters(hostname="localhost", port=port)
    assert repr(port) in str(raised.value)


def test_a_port_may_be_text() -> None:
    port: Any = "5671"
    assert Parameters(port=port).port == port


def test_transport_options_that_are_no_dict_are_refused() -> None:
    options: Any = [1]
    with pytest.raises(TypeError, match="transport_options must be a dict, got list"):
        Parameters(transport_options=options)
