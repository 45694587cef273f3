"""The renewal of a login: in time, again after a failure, and not after its end."""

from __future__ import annotations

import gc
import logging

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from greenconn.credentials import Token
from greenconn.green import retry
from greenconn.green.retry import Renewal, RetryPolicy

CAME = 30.0
logger = logging.getLogger("greenconn.tests")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens may end soon, and failures be over soon."""
    monkeypatch.setattr(retry, "LEAST_PAUSE", 0.001)
    monkeypatch.setattr(retry, "RENEWING", RetryPolicy(first=0.001, longest=0.002))


class Login:
    """Gives secrets, one after the other; an exception among them is raised."""

    def __init__(self, *secrets: object, interval: float | None = None) -> None:
        self._secrets = list(secrets)
        self.asked = 0
        self.has_no_more = Event()
        self.renewal = Renewal(self.renew, logger, "amqp://host", interval)

    def renew(self) -> object:
        """Return the next secret; after the last one, one that does not end."""
        self.asked += 1
        if not self._secrets:
            self.has_no_more.set()
            return "lasts"
        secret = self._secrets.pop(0)
        if isinstance(secret, BaseException):
            raise secret
        return secret


def test_tokens_are_renewed_one_after_the_other() -> None:
    login = Login(Token("b", 0.01), Token("c", 0.01))
    login.renewal.keep(Token("a", 0.01))
    assert login.has_no_more.wait(CAME)
    gevent.sleep(0.02)
    assert login.asked == 3
    login.renewal.stop()


def test_what_does_not_end_is_left_alone() -> None:
    login = Login()
    for secret in ("plain", Token("lasts"), None):
        login.renewal.keep(secret)
    gevent.sleep(0.02)
    assert login.asked == 0
    login.renewal.stop()


def test_an_interval_counts_for_every_login() -> None:
    login = Login("b", "c", interval=0.005)
    login.renewal.keep("a")
    assert login.has_no_more.wait(CAME)
    login.renewal.stop()


def test_a_failure_is_logged_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    login = Login(OSError("away"), OSError("away"))
    login.renewal.begin_in(0.0)
    assert login.has_no_more.wait(CAME)
    assert caplog.text.count("amqp://host: the credentials could not be renewed") == 2
    assert login.asked == 3
    login.renewal.stop()


def test_a_timeout_of_the_program_is_retried_too(caplog: pytest.LogCaptureFixture) -> None:
    login = Login(gevent.Timeout(CAME), KeyError("token"), KeyError("token"))
    login.renewal.begin_in(0.0)
    assert login.has_no_more.wait(CAME)
    assert login.asked == 4
    # The first of each class with its traceback.
    assert [bool(each.exc_info) for each in caplog.records] == [True, True, False]
    login.renewal.stop()


def test_the_end_comes_also_within_a_renewal() -> None:
    began = Event()

    class Slow(Login):
        def renew(self) -> object:
            began.set()
            gevent.sleep(CAME)
            return None

    login = Slow()
    login.renewal.begin_in(0.0)
    assert began.wait(CAME)
    login.renewal.stop()
    gevent.sleep(0)
    login.renewal.begin_in(0.0)
    login.renewal.keep(Token("a", 0.001))
    began.clear()
    gevent.sleep(0.01)
    assert not began.is_set()


def test_it_keeps_nobody_alive() -> None:
    asked: list[int] = []

    class Counting(Login):
        def renew(self) -> object:
            asked.append(1)
            return None

    login = Counting()
    login.renewal.begin_in(0.005)
    gc.disable()
    try:
        del login
        gevent.sleep(0.02)
    finally:
        gc.enable()
    assert asked == []


def test_pauses_begin_anew_after_a_renewal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = RetryPolicy(first=0.001, factor=1000.0, longest=0.5, jitter=0.0)
    monkeypatch.setattr(retry, "RENEWING", policy)
    login = Login(OSError("1"), Token("b", 0.01), OSError("2"))
    login.renewal.begin_in(0.0)
    assert login.has_no_more.wait(CAME)
    texts = [each.getMessage() for each in caplog.records if each.name == logger.name]
    assert len(texts) == 2
    assert all("next attempt in 0.0 s" in each for each in texts)
    login.renewal.stop()


def test_a_new_time_replaces_the_one_before() -> None:
    login = Login()
    login.renewal.begin_in(0.001)
    login.renewal.begin_in(3600.0)
    gevent.sleep(0.02)
    assert login.asked == 0
    login.renewal.begin_in(0.0)
    assert login.has_no_more.wait(CAME)
    login.renewal.stop()
    login.renewal.begin_in(0.0)
    gevent.sleep(0.01)
    assert login.asked == 1


def test_it_keeps_no_loop_running() -> None:
    login = Login()

    def run() -> bool:
        login.renewal.begin_in(3600.0)
        has_ended: bool = gevent.get_hub().join(CAME)
        login.renewal.stop()
        return has_ended

    thread = ThreadPool(1)
    try:
        assert thread.apply(run)
    finally:
        thread.kill()


def test_no_timer_is_left_while_it_asks() -> None:
    timers: list[object] = []

    class Looking(Login):
        def renew(self) -> object:
            timers.append(self.renewal._timer)
            return super().renew()

    login = Looking()
    login.renewal.begin_in(0.0)
    assert login.has_no_more.wait(CAME)
    assert timers == [None]
    login.renewal.stop()
