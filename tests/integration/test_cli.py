"""``python -m greenconn`` in a process of its own, with a RabbitMQ: what a user sees and gets."""

from __future__ import annotations

import os
import pty
import resource
import signal
from collections.abc import Callable, Iterator
from typing import TypeAlias

import gevent
import pytest
from gevent.socket import wait_read

from tests.brokers.ports import free_ports
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_peer import PeerFactory
from tests.integration.processes import Outcome, Running, run, start

pytestmark = [pytest.mark.programs, pytest.mark.halved]

Start: TypeAlias = Callable[..., Running]

INTERRUPTED = 130


def greenconn(*arguments: str, input: bytes = b"", env: dict[str, str] | None = None) -> Outcome:
    """Run a command to its end."""
    return run("-m", "greenconn", *arguments, input=input, env=env)


@pytest.fixture
def starting() -> Iterator[Start]:
    """``starting("consume", ...)`` starts a command; ended after the test."""
    programs: list[Running] = []

    def start_one(*arguments: str) -> Running:
        programs.append(start("-m", "greenconn", *arguments))
        return programs[-1]

    yield start_one
    for each in programs:
        each.end()


@pytest.fixture
def queue(amqp_url: str, unique: str) -> Iterator[str]:
    """A queue that is deleted after the test."""
    from greenconn import Connection

    yield unique
    with Connection(amqp_url) as connection:
        connection.default_channel.queue_delete(unique)


def only_line(outcome: Outcome) -> str:
    """The one line on standard error."""
    (line,) = outcome.errors.splitlines()
    return line


# Quick, and without its extras


def test_help_is_quick() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome = greenconn("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert outcome.code == 0
    # Time of the processor: the machine may be busy with something else.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(("missing", "command"), [("click", "--help"), ("rich", "demo")])
def test_without_the_extra_the_remedy_is_named(missing: str, command: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"sys.argv = ['greenconn', {command!r}]\n"
        f"from greenconn.__main__ import main; sys.exit(main())"
    )
    outcome = run("-c", program)
    assert outcome.code == 2
    assert f"needs {missing!r}: pip install 'greenconn[cli]'" in only_line(outcome)


# Brokers that cannot be reached


def test_nobody_listens() -> None:
    port = free_ports(1)[0]
    for command in (["ping"], ["publish", "q", "x", "-u"], ["purge", "q", "-y", "-u"]):
        outcome = greenconn(*command, f"amqp://guest:guest@127.0.0.1:{port}//")
        assert outcome.code == 1
        assert "is the broker running" in only_line(outcome)
        assert "Traceback" not in outcome.errors


@pytest.mark.full
def test_a_wrong_password(amqp_url: str) -> None:
    outcome = greenconn("ping", amqp_url.replace("guest:guest", "guest:wrong-secret"))
    assert outcome.code == 1
    assert "check user, password" in only_line(outcome)
    assert "wrong-secret" not in outcome.errors + outcome.output


@pytest.mark.full
def test_a_virtual_host_that_does_not_exist(amqp_url: str) -> None:
    base = amqp_url.rpartition("/")[0]
    for command in (["ping"], ["consume", "q", "-u"], ["demo", "--url"]):
        outcome = greenconn(*command, f"{base}/nosuch")
        assert outcome.code == 1
        assert "virtual host" in only_line(outcome)


@pytest.mark.full
def test_a_server_that_says_nothing(peer: PeerFactory) -> None:
    server = peer(lambda client: client.recv(100) and client.recv(100))
    outcome = greenconn("ping", f"amqp://127.0.0.1:{server.port}//", "-t", "0.5")
    assert outcome.code == 1
    assert "check host, port and firewall" in only_line(outcome)


@pytest.mark.full
def test_tls_where_there_is_none(amqp_url: str) -> None:
    outcome = greenconn("ping", amqp_url.replace("amqp://", "amqps://"))
    assert outcome.code == 1
    assert "does not speak TLS" in only_line(outcome)


# There and back


def test_messages_there_and_back(amqp_url: str, queue: str) -> None:
    env = {"GREENCONN_URL": amqp_url}
    lines = "".join(f"line {number}\n" for number in range(5000))
    outcome = greenconn("publish", queue, "--declare", input=lines.encode(), env=env)
    assert (outcome.code, only_line(outcome)) == (0, f"published 5000 messages to {queue}")
    outcome = greenconn("consume", queue, "-n", "10", env=env)
    assert outcome.output == "".join(f"line {number}\n" for number in range(10))
    outcome = greenconn("consume", queue, "-w", "0.5", env=env)
    assert outcome.output == "".join(f"line {number}\n" for number in range(10, 5000))
    assert (outcome.code, only_line(outcome)) == (0, f"consumed 4990 messages from {queue}")
    assert greenconn("purge", queue, "-y", env=env).output == f"purged 0 messages of {queue}\n"


@pytest.mark.full
def test_lines_are_published_as_they_come(amqp_url: str, queue: str, starting: Start) -> None:
    publishing = starting("publish", queue, "--declare", "-u", amqp_url)
    consuming = starting("consume", queue, "-u", amqp_url)
    publishing.input.write(b"first\n")
    publishing.input.flush()
    # The queue is there once the first line is; the consumer may have come too early.
    with gevent.Timeout(30):
        while consuming.process.poll() is not None or not (line := read_line(consuming)):
            consuming.end()
            consuming = starting("consume", queue, "-u", amqp_url)
    assert line == b"first\n"
    publishing.input.write(b"second\n")
    publishing.input.flush()
    assert read_line(consuming) == b"second\n"
    consuming.signal(signal.SIGINT)
    outcome = consuming.outcome()
    assert outcome.code == INTERRUPTED
    assert outcome.errors == f"consumed 2 messages from {queue}\ngreenconn: interrupted\n"
    assert publishing.outcome().code == 0


def read_line(program: Running) -> bytes:
    """The next line of a program's output; nothing at its end."""
    line = b""
    with gevent.Timeout(30):
        while not line.endswith(b"\n"):
            wait_read(program.output.fileno())
            byte = os.read(program.output.fileno(), 1)
            if not byte:
                break
            line += byte
    return line


@pytest.mark.full
def test_a_reader_that_goes_takes_only_what_it_read(
    amqp_url: str, queue: str, starting: Start
) -> None:
    lines = "".join(f"{number}\n" for number in range(1000))
    assert greenconn("publish", queue, "--declare", "-u", amqp_url, input=lines.encode()).code == 0
    consuming = starting("consume", queue, "-u", amqp_url)
    assert read_line(consuming) == b"0\n"
    consuming.output.close()
    assert greenconn("publish", queue, "one more", "-u", amqp_url).code == 0
    with gevent.Timeout(30):
        while consuming.process.poll() is None:
            gevent.sleep(0.01)
    assert consuming.process.returncode == 0
    assert consuming.process.stderr is not None
    errors = consuming.process.stderr.read().decode()
    taken = int(errors.split()[1])
    assert errors == f"consumed {taken} message{'s' * (taken != 1)} from {queue}\n"
    left = greenconn("consume", queue, "-w", "0.5", "-u", amqp_url).output.splitlines()
    assert left == [*map(str, range(taken, 1000)), "one more"]


@pytest.mark.full
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_an_output_that_cannot_be_written(amqp_url: str, queue: str) -> None:
    assert greenconn("publish", queue, "--declare", "kept", "-u", amqp_url).code == 0
    with open("/dev/full", "wb") as full:
        consuming = start("-m", "greenconn", "consume", queue, "-u", amqp_url, stdout=full)
    try:
        consuming.process.wait(timeout=30)
        assert consuming.process.returncode == 1
        assert consuming.process.stderr is not None
        assert b"cannot write to the standard output" in consuming.process.stderr.read()
    finally:
        consuming.end()
    assert greenconn("consume", queue, "-n", "1", "-u", amqp_url).output == "kept\n"


@pytest.mark.full
def test_no_standard_input(amqp_url: str) -> None:
    program = (
        "import os, sys; os.close(0)\n"
        f"arguments = ['-m', 'greenconn', 'publish', 'q', '-u', {amqp_url!r}]\n"
        "os.execv(sys.executable, [sys.executable, *arguments])"
    )
    outcome = run("-c", program)
    assert outcome.code == 2
    assert "no standard input" in only_line(outcome)


@pytest.mark.full
def test_a_queue_that_is_deleted_ends_its_consumer(
    amqp_url: str, queue: str, starting: Start
) -> None:
    from greenconn import Connection

    assert greenconn("publish", queue, "--declare", "x", "-u", amqp_url).code == 0
    consuming = starting("consume", queue, "-u", amqp_url)
    assert read_line(consuming) == b"x\n"
    with Connection(amqp_url) as connection:
        connection.default_channel.queue_delete(queue)
    outcome = consuming.outcome()
    assert outcome.code == 1
    assert f"no queue '{queue}'" in outcome.errors
    assert "Traceback" not in outcome.errors


# Ctrl-C


@pytest.mark.full
def test_ctrl_c_while_it_waits_for_input(amqp_url: str, queue: str, starting: Start) -> None:
    publishing = starting("publish", queue, "--declare", "-u", amqp_url)
    consuming = None
    publishing.input.write(b"x\n")
    publishing.input.flush()
    with gevent.Timeout(30):
        while consuming is None or consuming.output != "x\n":
            consuming = greenconn("consume", queue, "-n", "1", "-u", amqp_url)
    publishing.signal(signal.SIGINT)
    with gevent.Timeout(30):
        while publishing.process.poll() is None:
            gevent.sleep(0.01)
    assert publishing.process.returncode == INTERRUPTED
    assert publishing.process.stderr is not None
    assert publishing.process.stderr.read().decode() == (
        f"published 1 message to {queue}\ngreenconn: interrupted\n"
    )


@pytest.mark.full
def test_ctrl_c_while_it_connects(peer: PeerFactory, starting: Start) -> None:
    server = peer(lambda client: client.recv(100) and client.recv(100))
    pinging = starting("ping", f"amqp://127.0.0.1:{server.port}//")
    assert server.has_accepted.wait(30)
    pinging.signal(signal.SIGINT)
    outcome = pinging.outcome()
    assert outcome.code == INTERRUPTED
    assert outcome.errors == "greenconn: interrupted\n"


# The demo

QUICK = ("--messages", "20000", "--consumers", "100", "--queues", "20", "--publishers", "50")


@pytest.mark.parametrize(
    "broker",
    ["memory", *(pytest.param(name, marks=pytest.mark.full) for name in ("amqp", "redis"))],
)
def test_the_demo_loses_nothing(broker: str, request: pytest.FixtureRequest, long: bool) -> None:
    url = "memory://" if broker == "memory" else request.getfixturevalue(f"{broker}_url")
    outcome = greenconn("demo", "--url", url, *(() if long else QUICK))
    assert (outcome.code, outcome.errors) == (0, "")
    values = summary(outcome.output)
    assert values["lost"] == values["duplicates"] == "0"
    assert values["handled"] == values["published"].split(" of ")[1]
    assert values["threads"] == "1"
    assert "sockets" in values
    if long and broker == "memory":
        assert float(values["CPU time"].split()[0]) < 1e6 / 20_000


def summary(output: str) -> dict[str, str]:
    """The figures at the end of a demo."""
    figures = {}
    for line in output.splitlines()[-12:]:
        name, _, value = line.partition("  ")
        figures[name] = value.strip()
    return figures


@pytest.mark.full
def test_the_demo_cleans_up(amqp_url: str, starting: Start) -> None:
    from tests.brokers.environment import AMQP_CTL
    from tests.brokers.rabbitmq import RabbitMQHandle

    demo = starting("demo", "--url", amqp_url, *QUICK, "--messages", "10000000")
    wait_for(demo, b"messages/s")
    demo.signal(signal.SIGINT)
    outcome = demo.outcome()
    assert outcome.code == INTERRUPTED
    assert outcome.errors == "greenconn: interrupted\n"
    values = summary(outcome.output)
    assert values["lost"] == "0"
    assert int(values["handled"].replace(",", "")) > 0
    assert "in flight" in values or values["published"].startswith(values["handled"])
    if os.environ.get(AMQP_CTL):
        handle = RabbitMQHandle.of(os.environ[AMQP_CTL])
        vhost = amqp_url.rpartition("/")[2].replace("%2F", "/")
        left = handle.ctl("list_queues", "-p", vhost, "name")
        assert "greenconn-demo" not in left


def wait_for(program: Running, text: bytes) -> None:
    """Wait until a program has written *text*."""
    seen = b""
    while text not in seen:
        line = read_line(program)
        assert line, seen
        seen += line


@pytest.mark.full
def test_a_broker_that_dies_ends_the_demo(own_rabbitmq: RabbitMQ, starting: Start) -> None:
    demo = starting("demo", "--url", own_rabbitmq.url, *QUICK, "--messages", "10000000")
    wait_for(demo, b"messages/s")
    own_rabbitmq.kill()
    outcome = demo.outcome()
    assert outcome.code == 1
    assert "the demo ended early" in only_line(outcome)
    assert summary(outcome.output)["lost"] == "0"


@pytest.mark.full
def test_the_demo_with_chaos_survives_the_loss_of_all_connections(
    own_rabbitmq: RabbitMQ, starting: Start
) -> None:
    demo = starting("demo", "--chaos", "--url", own_rabbitmq.url, *QUICK)
    wait_for(demo, b"messages/s")
    own_rabbitmq.ctl("close_all_connections", "chaos")
    outcome = demo.outcome()
    assert (outcome.code, outcome.errors) == (0, ""), outcome.output
    values = summary(outcome.output)
    assert values["lost"] == "0"
    assert values["handled"] == "20,000"


@pytest.mark.full
def test_the_demo_in_a_terminal() -> None:
    ours, its = pty.openpty()
    os.set_blocking(ours, False)
    demo = start("-m", "greenconn", "demo", *QUICK, stdout=its, stderr=its)
    os.close(its)
    seen = b""
    try:
        with gevent.Timeout(60):
            while True:
                wait_read(ours)
                try:
                    data = os.read(ours, 65536)
                except OSError:  # nobody has its other end any more
                    break
                if not data:
                    break
                seen += data
        assert demo.process.wait(timeout=30) == 0
    finally:
        demo.end()
        os.close(ours)
    for text in (b"messages handled", b"messages/s", b"latency", b"sockets", b"thread", b"lost"):
        assert text in seen
