"""Programs that say kombu and get greenconn, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.integration.processes import run

pytestmark = [pytest.mark.programs, pytest.mark.halved]

INSTALL = "from greenconn.compat import install_as_kombu; install_as_kombu()\n"


def program(text: str) -> str:
    """What a program prints."""
    outcome = run("-W", "error", "-c", INSTALL + dedent(text))
    assert outcome.code == 0, outcome.errors
    return outcome.output.strip()


def test_a_program_of_kombu_runs() -> None:
    printed = program("""
        import kombu
        from kombu import Connection, Consumer, Exchange, Producer, Queue
        from kombu.pools import producers
        from kombu.utils.functional import maybe_list

        queue = Queue("mail", Exchange("letters"), routing_key="in")
        with Connection("memory://") as connection:
            with producers[connection].acquire(block=True) as producer:
                producer.publish({"to": "ada"}, exchange=queue.exchange, routing_key="in",
                                 declare=[queue])
            def receive(body, message):
                print(body, message.__class__.__module__.split(".")[0])
                message.ack()
            with connection.Consumer(queue, callbacks=[receive]):
                connection.drain_events(timeout=30)
        print(kombu.__version__, kombu.VERSION[:3], maybe_list(1))
    """)
    assert printed.splitlines() == ["{'to': 'ada'} greenconn", "5.7.0 (5, 7, 0) [1]"]


def test_what_nobody_has_says_so() -> None:
    printed = program("""
        try:
            import kombu.nonsense
        except ModuleNotFoundError as exc:
            print(exc.name, exc)
        try:
            from kombu import nonsense
        except ImportError as exc:
            print(exc)
    """)
    first, second = printed.splitlines()
    assert first.startswith("kombu.nonsense greenconn, which replaces kombu here")
    assert "nonsense" in second


def test_without_kombu_what_we_have_not_says_so() -> None:
    outcome = run("-c", WITHOUT_KOMBU + INSTALL + "import kombu.asynchronous.timer")
    assert outcome.code == 1
    assert "no module for kombu.asynchronous, and kombu is not installed" in outcome.errors
    outcome = run("-c", WITHOUT_KOMBU + INSTALL + "import kombu; kombu.Connection('consul://')")
    assert "no module for kombu.transport.consul, and kombu is not" in outcome.errors


#: As if kombu were not installed: its folder is not found.
WITHOUT_KOMBU = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *args, **kwargs: (
        None if name.partition(".")[0] == "kombu" else find(name, *args, **kwargs)
    )
)
"""


def test_modules_that_we_have_not_are_kombus_own() -> None:
    pytest.importorskip("kombu")
    printed = program("""
        from kombu.asynchronous import Hub, get_event_loop, set_event_loop
        from kombu.asynchronous.semaphore import DummyLock, LaxBoundedSemaphore
        from kombu.asynchronous.timer import Timer
        from kombu.utils.eventio import READ, poll
        import kombu.asynchronous.timer, kombu.log, greenconn.log
        assert kombu.asynchronous.timer.get_logger is greenconn.log.get_logger
        called = []
        timer = Timer()
        timer.call_after(0, called.append, (1,))
        for _, entry in zip(range(1), timer):
            entry[1]()
        print(called, kombu.asynchronous.__file__.endswith("kombu/asynchronous/__init__.py"))
    """)
    assert printed == "[1] True"


def test_private_names_that_celery_imports() -> None:
    program("""
        from kombu import Connection
        from kombu.exceptions import OperationalError
        from kombu.utils.url import _parse_url
        assert _parse_url("redis://:pw@host:1/2")[:5] == ("redis", "host", 1, None, "pw")
        connection = Connection("memory://")
        try:
            with connection._reraise_as_library_errors():
                raise connection.recoverable_connection_errors[0]("gone")
        except OperationalError as exc:
            assert str(exc) == "gone"
    """)


@pytest.mark.parametrize("install", ["", INSTALL], ids=["greenconn", "kombu"])
def test_schemes_that_only_kombu_has(install: str, tmp_path: Path) -> None:
    pytest.importorskip("kombu")
    text = """
        folder = sys.argv[1]
        names = ("data_folder_in", "data_folder_out", "control_folder")
        options = {"polling_interval": 0.01, **{name: folder for name in names}}
        with Connection("filesystem://", transport_options=options) as connection:
            with connection.SimpleQueue("mail") as queue:
                queue.put("hello")
                message = queue.get(timeout=30)
                message.ack()
                print(message.payload)
    """
    source = "kombu" if install else "greenconn"
    head = f"{install}\nimport sys\nfrom {source} import Connection\n"
    outcome = run("-c", head + dedent(text), str(tmp_path))
    assert outcome.output == "hello\n", outcome.errors


def test_unknown_keywords_are_logged_once() -> None:
    outcome = run(
        "-c",
        INSTALL
        + dedent("""
        from kombu import Connection, Exchange, Queue
        for _ in range(2):
            Queue("bills", queue_arguments={"x-expire": 5})
            queue = Queue("mail", Exchange("letters", tpye="fanout"), dead_leter=True)
            with Connection("memory://", hartbeat=3).clone() as connection:
                queue(connection).declare()
                connection.Pool(1, prelaod=1)
                connection.Producer().publish("x", routing_key="mail", task="a")
                message = queue(connection).get()
                print(message.payload, message.properties["task"], queue.exchange.type)
                message.ack()
        try:
            import greenconn
            greenconn.Retry(dely=1)
        except TypeError as exc:
            print(exc)
    """),
    )
    assert outcome.code == 0, outcome.errors
    assert outcome.output.splitlines() == [
        *["x a direct"] * 2,
        "Retry() has no option 'dely'; did you mean 'delay'?",
    ]
    said = [
        "queue_arguments of Queue 'bills': brokers ignore 'x-expire'; did you mean 'x-expires'?",
        "Exchange() has no option 'tpye'; did you mean 'type'?",
        "Queue() has no option 'dead_leter'; did you mean 'dead_letter'?",
        "Connection() has no option 'hartbeat'; did you mean 'heartbeat'?",
        "ConnectionPool() has no option 'prelaod'; did you mean 'preload'?",
        "Producer.publish() has no option 'task'; known: DelaySeconds, ",
    ]
    lines = outcome.errors.splitlines()
    assert [
        line.partition("kombu: ")[2][: len(text)] for line, text in zip(lines, said, strict=True)
    ] == said


def test_it_is_too_late_once_kombu_is_imported() -> None:
    pytest.importorskip("kombu")
    text = "import kombu\n" + INSTALL
    outcome = run("-c", text)
    assert outcome.code == 1
    assert "RuntimeError: kombu is already imported (from " in outcome.errors
    assert "call install_as_kombu() before" in outcome.errors


#: An import hook that asks the other finders, as those of tracing libraries do.
ASKING_HOOK = """
import sys

class Hook:
    def __init__(self):
        self.asked = set()

    def find_spec(self, name, path=None, target=None):
        if name in self.asked:
            return None
        self.asked.add(name)
        try:
            for finder in list(sys.meta_path):
                if finder is not self and (spec := finder.find_spec(name, path, target)):
                    return spec
        finally:
            self.asked.remove(name)
        return None

"""


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_import_hook_that_asks_the_other_finders(order: str) -> None:
    pytest.importorskip("kombu")
    steps = [ASKING_HOOK + "sys.meta_path.insert(0, Hook())\n", INSTALL]
    text = """
import kombu.asynchronous.timer
import kombu.transport.virtual
print(kombu.asynchronous.__file__.endswith("kombu/asynchronous/__init__.py"))
print(kombu.transport.virtual.Channel.__module__.partition(".")[0])
"""
    outcome = run("-c", "".join(steps if order == "before" else reversed(steps)) + text)
    assert outcome.output.split() == ["True", "greenconn"], outcome.errors
