"""Programs that say kombu and get greenconn, each in a process of its own."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tests.integration.processes import run

pytestmark = pytest.mark.programs

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
                connection.drain_events(timeout=5)
        print(kombu.__version__, kombu.VERSION[:3], maybe_list(1))
    """)
    assert printed.splitlines() == ["{'to': 'ada'} greenconn", "5.7.0 (5, 7, 0) [1]"]


def test_both_names_mean_the_same_objects() -> None:
    program("""
        import kombu, kombu.utils.uuid, kombu.transport.virtual.exchange
        import greenconn.transport.virtual.exchange as ours
        import greenconn
        from kombu.utils import uuid
        from kombu.exceptions import KombuError
        assert kombu.transport.virtual.exchange is ours
        assert ours.__spec__.name == ours.__name__ == "greenconn.transport.virtual.exchange"
        assert kombu.Connection is greenconn.Connection
        assert KombuError is greenconn.exceptions.KombuError
        assert callable(uuid) and callable(kombu.uuid)
        assert {*greenconn.__all__} <= {*dir(kombu)}
        import pickle
        assert pickle.loads(pickle.dumps(kombu.Queue("mail"))) == greenconn.Queue("mail")
    """)


def test_what_we_have_not_says_so() -> None:
    printed = program("""
        for name in ("kombu.asynchronous", "kombu.transport.pyro"):
            try:
                __import__(name)
            except ModuleNotFoundError as exc:
                print(exc.name, exc)
        try:
            from kombu import nonsense
        except ImportError as exc:
            print(exc)
    """)
    first, second, third = printed.splitlines()
    assert first.startswith("kombu.asynchronous greenconn, which stands in for kombu here")
    assert second.startswith("kombu.transport.pyro ")
    assert "nonsense" in third


def test_again_changes_nothing() -> None:
    program("""
        import sys
        finders = list(sys.meta_path)
        install_as_kombu()
        import kombu
        install_as_kombu()
        assert sys.meta_path == finders
    """)


def test_it_is_too_late_once_kombu_is_imported() -> None:
    pytest.importorskip("kombu")
    text = "import kombu\n" + INSTALL
    outcome = run("-c", text)
    assert outcome.code == 1
    assert "RuntimeError: kombu is already imported (from " in outcome.errors
    assert "call install_as_kombu() before" in outcome.errors
