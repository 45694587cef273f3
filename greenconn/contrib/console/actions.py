"""The actions of an operator on queues and messages, and their progress.

Each action is one of the library's own, at least once: a message is published and confirmed before it is
acknowledged where it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from itertools import count
from os import getpid
from time import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import gevent
from gevent import GreenletExit

from greenconn.contrib.console.broker import BrokerView, HandlerWatch, consumers_of, fingerprint
from greenconn.contrib.console.security import Mask, masked_text
from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.publishing import publish_prepared
from greenconn.publishing.publisher import PublishOptions
from greenconn.service.periodic import call_now
from greenconn.service.records import message_of
from greenconn.worker.failures import (
    DeadLetterEntry,
    DeadLetters,
    forwarded,
    fresh_headers,
    move,
    priority_of,
    resent,
)

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.publishing.publisher import OutgoingMessage
    from greenconn.service.app import App

logger = logging.getLogger("greenconn.console")

#: The actions, as they are passed to ``authorize``, and what each does.
ACTIONS: Final[Mapping[str, str]] = {
    "publish": "publish a message to a queue",
    "purge": "delete the ready messages of a queue",
    "move": "move messages to another queue",
    "pause": "pause the consumers of a queue in this process",
    "resume": "resume the consumers of a queue in this process",
    "retry": "publish dead letters to their queue again",
    "edit": "change a dead letter and publish it to its queue",
    "delete": "delete dead letters",
    "interrupt": "interrupt a handler of this process",
    "run": "make a periodic call now",
}
#: Jobs that are remembered.
MOST_JOBS: Final = 100
#: Seconds for publishing one message, and for pausing a consumer.
TIMEOUT: Final = 10.0
#: Characters of a queue's name that a log line has.
LONGEST: Final = 200

#: Called with the number of messages that are done.
Note: TypeAlias = Callable[[int], object]


class WrongInput(ValueError):
    """A field of a form that cannot be used; the text says which and why."""


class Job:
    """An action that is under way, or has ended.

    Arguments:
        action: one of :data:`ACTIONS`.
        text: what is done, for the page.
        user: who has asked for it.
        function: does it; called with a function that notes how many messages are done.  Returns the
            sentence that says what was done.
        total: number of messages that are expected; None: unknown.

    Attributes:
        done: number of messages that are done.
        state: ``running``, ``done``, ``failed`` or ``stopped``.
        result: the sentence that says what was done, or why not.
    """

    _numbers = count(1)

    def __init__(
        self,
        action: str,
        text: str,
        user: str,
        function: Callable[[Note], str],
        total: int | None = None,
    ) -> None:
        self.id = f"{getpid()}-{next(self._numbers)}"
        self.action = action
        self.text = text
        self.user = user
        self.total = total
        self.done = 0
        self.state = "running"
        self.result = ""
        self.began_at = time()
        self.ended_at: float | None = None
        self._function = function
        self._greenlet: gevent.Greenlet[..., Any] = spawn("console", self._run)

    @property
    def seconds(self) -> float:
        """The seconds for which it runs, or has run."""
        return (self.ended_at or time()) - self.began_at

    def wait(self, timeout: float) -> bool:
        """Return whether it ends within *timeout* seconds.  May switch."""
        self._greenlet.join(timeout)
        return self.state != "running"

    def stop(self) -> None:
        """Stop it: what is done stays so, all other messages stay where they are.  May switch."""
        self._greenlet.kill(timeout=TIMEOUT)

    def _note(self, done: int) -> None:
        self.done = done

    def _run(self) -> None:
        try:
            self.result, self.state = self._function(self._note), "done"
        except GreenletExit:
            self.result, self.state = f"stopped after {_messages(self.done)}", "stopped"
        except Exception as exc:
            reason = masked_text(error_text(exc))
            done = f"after {_messages(self.done)}: " if self.done else ""
            self.result, self.state = f"{done}{type(exc).__name__}: {reason}", "failed"
        finally:
            self.ended_at = time()
            level = logging.WARNING if self.state == "failed" else logging.INFO
            logger.log(
                level,
                "%s: %s: %s (%s)",
                self.user,
                ascii(self.text)[1:-1],
                ascii(self.result)[1:-1],
                self.state,
                extra={"user": self.user, "action": self.action},
            )


class Actions:
    """The actions of one console, and its jobs.

    Each method begins a job and returns it; none switches.
    """

    def __init__(self, view: BrokerView, watch: HandlerWatch, app: App | None, mask: Mask) -> None:
        self._view = view
        self._mask = mask
        self._watch = watch
        self._app = app
        self.jobs: dict[str, Job] = {}

    def _begin(
        self,
        action: str,
        text: str,
        user: str,
        work: Callable[[Note], str],
        total: int | None = None,
    ) -> Job:
        logger.info("%s: %s", user, ascii(text)[1:-1], extra={"user": user, "action": action})
        job = Job(action, text, user, work, total)
        self.jobs[job.id] = job
        ended = [each for each in self.jobs.values() if each.state != "running"]
        for each in ended[: max(0, len(self.jobs) - MOST_JOBS)]:
            del self.jobs[each.id]
        return job

    def running(self) -> list[Job]:
        """Return the jobs that are under way."""
        return [each for each in self.jobs.values() if each.state == "running"]

    # -- a queue

    def publish(self, user: str, queue: str, body: str, kind: str, headers: str) -> Job:
        """Publish a message.

        Arguments:
            body: text; JSON if *kind* says so.
            headers: an object of JSON, or nothing.

        Raises:
            WrongInput: body or headers are not as they must be.
        """
        message = _new_message(body, kind, headers)

        def work(note: Note) -> str:
            options = PublishOptions(queue, {"declare": False})
            self._publish(resent(message, options, message.headers))
            note(1)
            return f"published 1 message to {queue}"

        return self._begin("publish", f"publish to {queue[:LONGEST]}", user, work)

    def _publish(self, outgoing: OutgoingMessage) -> None:
        publish_prepared(
            [outgoing], self._view.publishing, Deadline(TIMEOUT), lambda position: None
        )

    def purge(self, user: str, queue: str) -> Job:
        """Delete the ready messages of a queue."""

        def work(note: Note) -> str:
            with self._view.connection.channel() as channel:
                gone = channel.queue_purge(queue) or 0
            self._view.forget(queue)
            note(gone)
            return f"purged {_messages(gone)} of {queue}"

        return self._begin("purge", f"purge {queue[:LONGEST]}", user, work)

    def move(
        self, user: str, queue: str, target: str, limit: int | None, rate: float | None
    ) -> Job:
        """Move messages to another queue, the oldest first.

        Raises:
            WrongInput: *target* is the queue itself.
        """
        if not target or target == queue:
            raise WrongInput("the target must be another queue")

        def work(note: Note) -> str:
            with self._view.connection.channel() as channel:
                moved = move(
                    channel,
                    queue,
                    self._view.publishing,
                    lambda message: forwarded(message, target),
                    limit=limit,
                    rate=rate,
                    on_moved=note,
                )
            self._view.forget(queue, target)
            return f"moved {_messages(moved)} from {queue} to {target}"

        text = f"move {_limit(limit)} from {queue[:LONGEST]} to {target[:LONGEST]}"
        return self._begin("move", text, user, work, self._expected(queue, limit))

    def pause(self, user: str, queue: str) -> Job:
        """Pause the consumers of a queue in this process."""

        def work(note: Note) -> str:
            consumers = consumers_of(queue)
            paused = sum(each.pause(TIMEOUT) for each in consumers)
            return f"paused {paused} of {len(consumers)} consumers of {queue} in process {getpid()}"

        return self._begin("pause", f"pause {queue[:LONGEST]}", user, work)

    def resume(self, user: str, queue: str) -> Job:
        """Resume the consumers of a queue in this process."""

        def work(note: Note) -> str:
            consumers = consumers_of(queue)
            for each in consumers:
                each.resume()
            return f"resumed {len(consumers)} consumers of {queue} in process {getpid()}"

        return self._begin("resume", f"resume {queue[:LONGEST]}", user, work)

    # -- dead letters

    def retry(
        self,
        user: str,
        name: str,
        choice: Choice,
        *,
        target: str | None,
        limit: int | None = None,
        rate: float | None = None,
    ) -> Job:
        """Publish dead letters again.

        Arguments:
            name: of the queue that holds them.
            target: the queue that they go to; None: that of each, as far as it is the choice's.

        Raises:
            WrongInput: neither the letters nor the form name a queue.
        """
        queue = choice.queue or target
        if not queue:
            raise WrongInput("these dead letters name no queue: give the queue to publish them to")
        at_most = choice.limit if limit is None else limit

        def work(note: Note) -> str:
            letters = DeadLetters(queue, name, self._view.connection)
            done = letters.replay(
                choice.fits, limit=at_most, rate=rate, target=target, on_replayed=note
            )
            self._view.forget(name, target or queue)
            return f"retried {_messages(done)} of {name}"

        text = f"retry {choice} of {name[:LONGEST]}"
        return self._begin("retry", text, user, work, self._expected(name, at_most))

    def delete(self, user: str, name: str, choice: Choice) -> Job:
        """Delete dead letters."""

        def work(note: Note) -> str:
            letters = DeadLetters(choice.queue or name, name, self._view.connection)
            done = letters.delete(choice.fits, limit=choice.limit, on_deleted=note)
            self._view.forget(name)
            return f"deleted {_messages(done)} of {name}"

        text = f"delete {choice} of {name[:LONGEST]}"
        return self._begin("delete", text, user, work, self._expected(name, choice.limit))

    def edit(self, user: str, name: str, key: str, target: str, body: str, headers: str) -> Job:
        """Publish a dead letter with another body and other headers, then acknowledge the old one.

        Arguments:
            key: the fingerprint of the message.
            body: text; JSON if the message's was.

        Raises:
            WrongInput: body or headers are not as they must be.
        """
        if not target:
            raise WrongInput("give the queue to publish the message to")
        given = _headers_of(headers)

        def route(message: Message) -> OutgoingMessage | None:
            if fingerprint(message) != key:
                return None
            kept = fresh_headers(message)
            for header in editable_headers(message, self._mask):
                kept.pop(header, None)
            message.body = _body_for(message, body)
            return resent(message, PublishOptions(target, priority_of(message)), {**kept, **given})

        def work(note: Note) -> str:
            with self._view.connection.channel() as channel:
                done = move(channel, name, self._view.publishing, route, limit=1, on_moved=note)
            self._view.forget(name, target)
            if not done:
                raise LookupError(f"the message is not in {name} any more")
            return f"published the changed message to {target}"

        return self._begin("edit", f"edit message {key} of {name[:LONGEST]}", user, work, 1)

    def _expected(self, queue: str, limit: int | None) -> int | None:
        trend = self._view.snapshot.by_name.get(queue)
        waiting = None if trend is None else trend.figures.ready
        known = [each for each in (waiting, limit) if each is not None]
        return min(known) if known else None

    # -- this process

    def interrupt(self, user: str, key: str) -> Job:
        """Interrupt a handler of this process."""

        def work(note: Note) -> str:
            found = self._watch.interrupt(key)
            if found is None:
                raise LookupError("the handler has ended already, or runs in another process")
            return f"interrupted {found.event.handler} of {found.event.queue}"

        return self._begin("interrupt", f"interrupt handler {key[:LONGEST]}", user, work)

    def run(self, user: str, name: str) -> Job:
        """Have the leader of a schedule make a call now."""
        schedule = None if self._app is None else self._app.schedules.get(name)
        if schedule is None:
            raise WrongInput(f"there is no schedule {name!r}")

        def work(note: Note) -> str:
            call_now(name, schedule, self._view.publishing)
            return f"asked the leader of {name} to call it now"

        return self._begin("run", f"run {name[:LONGEST]}", user, work)


class Choice:
    """A choice of dead letters.

    Arguments:
        keys: fingerprints of the messages; empty: all that fit the rest.
        queue: the queue in which they failed; None: any.
        error: the class of the error, empty for none; None: any.
        reason: why they are dead letters, empty for none; None: any.
    """

    def __init__(
        self,
        keys: Collection[str] = (),
        queue: str | None = None,
        error: str | None = None,
        reason: str | None = None,
    ) -> None:
        #: How often each may still be taken: equal messages have equal fingerprints.
        self._left = {key: list(keys).count(key) for key in keys}
        self.limit = len(keys) or None
        self.queue = queue or None
        self._error = error
        self._reason = reason

    def __str__(self) -> str:
        if self.limit is not None:
            return _messages(self.limit)
        if self._error is None and self._reason is None:
            return "all"
        return f"all with {self._error or self._reason or 'no error'}"

    def fits(self, letter: DeadLetterEntry) -> bool:
        """Return whether a dead letter is meant."""
        if self.limit is not None:
            key = fingerprint(letter.message)
            left = self._left.get(key, 0)
            self._left[key] = left - 1
            return left > 0
        return (
            (self.queue is None or letter.queue == self.queue)
            and (self._error is None or (letter.error or "") == self._error)
            and (self._reason is None or (letter.reason or "") == self._reason)
        )


#: Beginnings of the names of headers that the library or the broker writes.
_OWN_HEADERS: Final = ("x-greenconn-", "x-death", "x-first-death-", "x-last-death-")
_OWN_NAMES: Final = frozenset({"compression", "redelivered", "x-delivery-count"})


def editable_headers(message: Message, mask: Mask) -> dict[str, Any]:
    """Return the headers that can be edited, as JSON: the program's own, without masked ones."""
    found = {}
    for name, value in message.headers.items():
        if (
            not isinstance(name, str)
            or name in _OWN_NAMES
            or name.startswith(_OWN_HEADERS)
            or mask.hides(name)
        ):
            continue
        try:
            if json.loads(json.dumps(value)) == value:
                found[name] = value
        except (TypeError, ValueError, RecursionError):
            pass  # a type of AMQP that JSON lacks
    return found


def editable_body(message: Message) -> str | None:
    """Return the body of a message as text that :meth:`Actions.edit` takes back; None: it is binary."""
    body = message.body
    if message.errors:
        return None
    if isinstance(body, (bytes, bytearray, memoryview)):
        try:
            body = bytes(body).decode(message.content_encoding or "utf-8")
        except (LookupError, UnicodeError, TypeError):
            return None
    if not isinstance(body, str) or (not body.isprintable() and "\0" in body):
        return None
    if _is_json(message):
        try:
            return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            return body
    return body


def _body_for(message: Message, text: str) -> bytes:
    """Return a body that was edited, encoded as that of *message* is.

    Raises:
        WrongInput: it is not JSON, or its encoding has not all characters.
    """
    if _is_json(message):
        text = _checked_json("body", text)
    try:
        return text.encode(message.content_encoding or "utf-8")
    except (LookupError, UnicodeError, TypeError) as exc:
        raise WrongInput(
            f"the body cannot be encoded as {message.content_encoding}: {exc}"
        ) from exc


def _is_json(message: Message) -> bool:
    return str(message.content_type).partition(";")[0] == "application/json"


def _checked_json(name: str, text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError) as exc:
        raise WrongInput(f"the {name} must be JSON: {exc}") from exc


def _headers_of(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as exc:
        raise WrongInput(f"the headers must be an object of JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise WrongInput("the headers must be an object of JSON")
    return found


def _new_message(body: str, kind: str, headers: str) -> Message:
    record = {"body": body, "content_type": kind or "text/plain", "headers": _headers_of(headers)}
    if record["content_type"] == "application/json":
        record["body"] = json.loads(_checked_json("body", body))
    record["content_encoding"] = "utf-8"
    try:
        return message_of(record)
    except ValueError as exc:
        raise WrongInput(str(exc)) from exc


def _messages(number: int) -> str:
    return f"{number:,} message{'s' * (number != 1)}"


def _limit(limit: int | None) -> str:
    return "all messages" if limit is None else _messages(limit)
