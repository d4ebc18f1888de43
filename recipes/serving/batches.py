"""Requests that arrive within a few milliseconds of one another are answered in one batch."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LARGEST = 64  # requests of a batch
WAIT = 0.005  # seconds that the first request of a batch waits for others
MOST_WAITING = 1_000


class BusyError(RuntimeError):
    """Too many requests wait already."""


class Batches:
    """Gathers requests while the model works, and lets it answer them together.

    Args:
        answer: Takes requests and returns per request its answer or the exception it deserves. It
            is called from one thread of its own, one batch after the other.
    """

    def __init__(self, answer: Callable[[Sequence[Any]], Sequence[Any]]):
        self._answer, self._queue = answer, asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def ask(self, request: Any) -> Any:
        """Return the answer to a request when its batch is done.

        Args:
            request: What `answer` takes one of.

        Raises:
            BusyError: Too many requests wait.
            Exception: What `answer` said this request deserves.
        """
        if self._queue.qsize() >= MOST_WAITING:
            raise BusyError(f"{MOST_WAITING:,} requests wait already; send this one again later.")
        future = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((request, future, time.monotonic() + WAIT))
        return await future

    async def run(self) -> None:
        """Answer batch after batch until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            requests = [request for request, _, _ in batch]
            try:
                found = await loop.run_in_executor(self.thread, self._answer, requests)
            except Exception as error:  # noqa: BLE001, a fault: all hear of it, the next batch runs
                found = [error] * len(batch)
            for (_, future, _), answer in zip(batch, found, strict=True):
                if future.done():  # whoever asked has gone
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _gather(self) -> list[tuple[Any, asyncio.Future, float]]:
        batch = [await self._queue.get()]
        while len(batch) < LARGEST:
            if self._queue.empty():
                left = batch[0][2] - time.monotonic()
                if left <= 0:
                    break
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), left))
                except TimeoutError:
                    break
            else:
                batch.append(self._queue.get_nowait())
        return batch
