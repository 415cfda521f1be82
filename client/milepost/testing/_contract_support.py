"""What the parts of the store contract share: an async store in blocking clothes, and a few saves."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Literal, Self

import pytest
from typing_extensions import override

from milepost.protocols import AsyncCheckpointStore, CheckpointStore
from milepost.types import Saved

W = "order-7"
"""The workflow that most tests use."""
EVENT_WAIT_S = 10.0
"""How long a test waits for an event, so that a store that tells none fails it and does not hang."""


class BlockingStore:
    """An async store whose methods block, on an event loop of its own. Closes the store at the end."""

    def __init__(self, store: AsyncCheckpointStore) -> None:
        self._store = store
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._runner:
            if hasattr(self._store, "close"):
                self.close()

    @override
    def __repr__(self) -> str:
        return repr(self._store)

    def __getattr__(self, name: str) -> Any:
        return _blocking(getattr(self._store, name), self._runner)


class BlockingBlock:
    """A lease or a watch of an async store, whose methods block."""

    def __init__(self, inner: Any, runner: asyncio.Runner) -> None:
        self._inner = inner
        self._runner = runner

    def __enter__(self) -> Self:
        self._runner.run(_wait(self._inner.__aenter__()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.run(_wait(self._inner.__aexit__(kind, error, traceback)))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            return self._runner.run(_wait(anext(self._inner), EVENT_WAIT_S))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End it."""
        self._runner.run(_wait(self._inner.aclose()))

    def __getattr__(self, name: str) -> Any:
        return _blocking(getattr(self._inner, name), self._runner)


def _blocking(attribute: Any, runner: asyncio.Runner) -> Any:
    if not callable(attribute):
        return attribute

    def call(*args: Any, **options: Any) -> Any:
        answer = attribute(*args, **options)
        if inspect.isawaitable(answer):
            return runner.run(_wait(answer))
        if hasattr(answer, "__aenter__"):
            return BlockingBlock(answer, runner)
        return _iterate(answer, runner) if hasattr(answer, "__anext__") else answer

    return call


def _iterate(items: AsyncIterator[Any], runner: asyncio.Runner) -> Iterator[Any]:
    while True:
        try:
            yield runner.run(_wait(anext(items)))
        except StopAsyncIteration:
            return


async def _wait(answer: Any, timeout_s: float | None = None) -> Any:
    async with asyncio.timeout(timeout_s):
        return await answer


def able(store: CheckpointStore, method: str) -> Any:
    """Return a method that a store may lack; skip the test where it does."""
    try:
        return getattr(store, method)
    except AttributeError:
        pytest.skip(f"the store has no {method}")


def chain(store: CheckpointStore, length: int) -> list[Saved]:
    """Save `c1`, `c2`, … one after the other, with the state {"n": 1}, {"n": 2}, …."""
    saves: list[Saved] = []
    for number in range(1, length + 1):
        after: Saved | Literal["start"] = saves[-1] if saves else "start"
        saves.append(store.save(W, state={"n": number}, after=after, checkpoint_id=f"c{number}"))
    return saves


def save_item(store: CheckpointStore, checkpoint_id: str, *, n: int = 1, after: Any = None) -> Saved:
    """Save the state {"n": n} under an id."""
    return store.save(W, state={"n": n}, after=after, checkpoint_id=checkpoint_id, current_step="a")
