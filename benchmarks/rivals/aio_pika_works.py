"""aio-pika on asyncio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from time import monotonic_ns, perf_counter
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.pool import Pool

from benchmarks.clock import Clock, Figures, p50, p99
from benchmarks.memory import Growth
from benchmarks.rivals.load import Calls, under_load
from benchmarks.rivals.shape import CALLERS, CONSUMERS, PREFETCH, TIMEOUT
from benchmarks.stage import BODY, LARGE, Stage


class Works:
    """The works of aio-pika, which leaves serialising to the program."""

    def __init__(self, url: str, stage: Stage) -> None:
        self.url = url
        self.stage = stage

    def close(self) -> None:
        """Nothing: each work has ended its connections."""

    def publish(self, count: int) -> Figures:
        """One task."""

        async def work() -> Figures:
            sink = self.stage.sink()
            async with self._channel() as channel:
                with Clock() as clock:
                    for _ in range(count):
                        await _publish(channel, sink)
                    await channel.get_queue(self.stage.mark)
            return clock.per(count)

        return asyncio.run(work())

    def publish_pool(self, count: int) -> Figures:
        """1,000 tasks and a pool of 10 channels, each on a connection."""

        async def work() -> Figures:
            sink, limit = self.stage.sink(), 10
            connections: Pool[Any] = Pool(self._connect, max_size=limit)

            async def open_channel() -> Any:
                async with connections.acquire() as connection:
                    return await connection.channel(publisher_confirms=False)

            channels: Pool[Any] = Pool(open_channel, max_size=limit)

            took: list[float] = []

            async def publish() -> None:
                began = perf_counter()
                async with channels.acquire() as channel:
                    await _publish(channel, sink)
                took.append(perf_counter() - began)

            async def settle() -> None:
                async with channels.acquire() as channel:
                    await channel.get_queue(self.stage.mark)

            async with connections, channels:
                await many(limit, limit, settle)
                with Clock() as clock:
                    done = await many(1000, count, publish)
                    await many(limit, limit, settle)
            return clock.per(done, p99=p99(took))

        return asyncio.run(work())

    def acquire(self, count: int) -> Figures:
        """One task, and nobody else wants one."""

        async def work() -> Figures:
            connections: Pool[Any] = Pool(self._connect, max_size=10)
            async with connections:
                async with connections.acquire():
                    pass
                with Clock() as clock:
                    for _ in range(count):
                        async with connections.acquire():
                            pass
            return clock.per(count)

        return asyncio.run(work())

    def confirmed(self, count: int) -> Figures:
        """One at a time."""

        async def work() -> Figures:
            sink = self.stage.sink()
            took = []
            async with self._channel(publisher_confirms=True) as channel:
                with Clock() as clock:
                    for _ in range(count):
                        began = perf_counter()
                        await _publish(channel, sink)
                        took.append(perf_counter() - began)
            return clock.per(count, p50=p50(took))

        return asyncio.run(work())

    def confirmed_shared(self, count: int) -> Figures:
        """100 tasks share one channel."""

        async def work() -> Figures:
            sink = self.stage.sink()
            async with self._channel(publisher_confirms=True) as channel:
                with Clock() as clock:
                    done = await many(CALLERS, count, lambda: _publish(channel, sink))
            return clock.per(done)

        return asyncio.run(work())

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        return asyncio.run(self._consume(count, self.stage.source(count)))

    def consume_no_ack(self, count: int) -> Figures:
        """No acknowledgements."""
        return asyncio.run(self._consume(count, self.stage.source(count), no_ack=True))

    def large_consume(self, count: int) -> Figures:
        """1 MiB each."""
        return asyncio.run(self._consume(count, self.stage.large_source(count), load=len))

    async def _consume(
        self,
        count: int,
        source: str,
        *,
        no_ack: bool = False,
        load: Callable[[bytes], Any] = json.loads,
    ) -> Figures:
        async with self._channel() as channel:
            counter = Counter(count, no_ack=no_ack, load=load)
            queue = await channel.get_queue(source, ensure=False)
            with Clock() as clock:
                await queue.consume(counter.callback, no_ack=no_ack)
                await counter.wait()
        return clock.per(count)

    def consumers(self, count: int) -> Figures:
        """1,000 consumers on one channel."""

        async def work() -> Figures:
            sources = self.stage.sources(CONSUMERS)
            each = max(1, count // CONSUMERS)
            feeder = self.stage.peer("feed", str(each), *sources)
            counter = Counter(each * CONSUMERS)
            async with self._channel() as channel:

                async def consume(name: str) -> None:
                    queue = await channel.get_queue(name, ensure=False)
                    await queue.consume(counter.callback)

                await consume(sources[0])  # what the first one loads is not counted
                with Growth() as growth:
                    for source in sources[1:]:
                        await consume(source)
                with Clock() as clock:
                    self.stage.go(feeder)
                    await counter.wait()
            return clock.per(each * CONSUMERS, memory=growth.per(CONSUMERS - 1))

        return asyncio.run(work())

    def rpc(self, count: int, callers: int = 1) -> Figures:
        """Futures by correlation id."""

        async def work() -> Figures:
            requests = self.stage.server()
            waiting: dict[str, asyncio.Future[Any]] = {}

            async def callback(message: Any) -> None:
                waiting.pop(message.correlation_id).set_result(json.loads(message.body))

            async with self._channel() as channel:
                replies = await channel.declare_queue(exclusive=True)
                await replies.consume(callback, no_ack=True)

                async def call() -> None:
                    correlation_id = str(uuid4())
                    reply = asyncio.get_running_loop().create_future()
                    waiting[correlation_id] = reply
                    await _publish(
                        channel, requests, reply_to=replies.name, correlation_id=correlation_id
                    )
                    await reply

                with Clock() as clock:
                    done = await many(callers, count, call)
            return clock.per(done)

        return asyncio.run(work())

    def rpc_shared(self, count: int) -> Figures:
        """100 callers."""
        return self.rpc(count, CALLERS)

    def large_publish(self, count: int) -> Figures:
        """1 MiB each."""

        async def work() -> Figures:
            sink = self.stage.sink(length=2)
            async with self._channel() as channel:
                with Clock() as clock:
                    for _ in range(count):
                        await channel.default_exchange.publish(aio_pika.Message(LARGE), sink)
                    await channel.get_queue(self.stage.mark)
            return clock.per(count)

        return asyncio.run(work())

    def loaded_publish(self, count: int) -> Figures:
        """100 tasks share one channel; a free one takes a call that is due."""
        sink = self.stage.sink()

        async def work(count: int, rate: float) -> tuple[list[float], float]:
            took: list[float] = []
            async with self._channel(publisher_confirms=True) as channel:
                due_times: asyncio.Queue[float | None] = asyncio.Queue()
                loop = asyncio.get_running_loop()

                async def caller() -> None:
                    while (due := await due_times.get()) is not None:
                        await _publish(channel, sink)
                        took.append(perf_counter() - due)

                began = perf_counter()
                with closing(Calls(count, rate)) as calls:

                    def come() -> None:
                        for due in calls.come():
                            due_times.put_nowait(due)
                        if not calls.left:
                            loop.remove_reader(calls)
                            for _ in range(CALLERS):
                                due_times.put_nowait(None)

                    loop.add_reader(calls, come)
                    await asyncio.gather(*(caller() for _ in range(CALLERS)))
                return took, perf_counter() - began

        return under_load(lambda count, rate: asyncio.run(work(count, rate)), count)

    def loaded_delivery(self, count: int) -> Figures:
        """A consumer that gets a stream."""

        def run(count: int, rate: float) -> tuple[list[float], float]:
            clock, took = self._listen(count, "stream", str(rate))
            return took, clock.per(1)["wall"] / 1e6

        return under_load(run, count)

    def latency(self, count: int) -> Figures:
        """A consumer that waits."""
        clock, took = self._listen(count, "tick")
        return clock.per(count, p50=p50(took))

    def _listen(self, count: int, role: str, *arguments: str) -> tuple[Clock, list[float]]:
        async def work() -> tuple[Clock, list[float]]:
            (source,) = self.stage.sources(1)
            ticker = self.stage.peer(role, str(count), source, *arguments)
            took: list[float] = []

            def load(body: bytes) -> None:
                took.append((monotonic_ns() - json.loads(body)["sent"]) / 1e9)

            counter = Counter(count, load=load)
            async with self._channel() as channel:
                queue = await channel.get_queue(source, ensure=False)
                await queue.consume(counter.callback)
                with Clock() as clock:
                    self.stage.go(ticker)
                    await counter.wait()
            return clock, took

        return asyncio.run(work())

    def connect(self, count: int) -> Figures:
        """Connect and close."""

        async def work() -> Figures:
            with Clock() as clock:
                for _ in range(count):
                    connection = await self._connect()
                    await connection.close()
            return clock.per(count)

        return asyncio.run(work())

    async def _connect(self) -> Any:
        return await aio_pika.connect_robust(self.url)

    @asynccontextmanager
    async def _channel(self, *, publisher_confirms: bool = False) -> AsyncIterator[Any]:
        async with await self._connect() as connection:
            channel = await connection.channel(publisher_confirms=publisher_confirms)
            await channel.set_qos(prefetch_count=PREFETCH)
            yield channel


class Counter:
    """A callback that counts."""

    def __init__(
        self, awaited: int, *, no_ack: bool = False, load: Callable[[bytes], Any] = json.loads
    ) -> None:
        self._awaited = awaited
        self._no_ack = no_ack
        self._load = load
        self._seen = 0
        self._done = asyncio.Event()

    async def callback(self, message: Any) -> None:
        """Count one."""
        self._load(message.body)
        if not self._no_ack:
            await message.ack()
        self._seen += 1
        if self._seen == self._awaited:
            self._done.set()

    async def wait(self) -> None:
        """Wait until all came."""
        await asyncio.wait_for(self._done.wait(), TIMEOUT)


async def many(tasks: int, count: int, function: Callable[[], Awaitable[None]]) -> int:
    """Call *function* about *count* times from *tasks*; returns how often."""
    each = max(1, count // tasks)

    async def run() -> None:
        for _ in range(each):
            await function()

    runs: list[Coroutine[Any, Any, None]] = [run() for _ in range(tasks)]
    await asyncio.gather(*runs)
    return tasks * each


async def _publish(channel: Any, queue: str, **properties: Any) -> None:
    message = aio_pika.Message(
        json.dumps(BODY).encode(),
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        **properties,
    )
    await channel.default_exchange.publish(message, queue)
