"""What the services want of the queue before an engine: to run commands and reads, and to be told what was committed.

`storage.committer.Committer` is it; its bounds and failures are told there.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

from milepost_server.errors import StoreError
from milepost_server.model import Answer, Command, EncodedLoadAnswer, EncodedLoadQuery, LongLoad

_T = TypeVar("_T")


class CommitListener(Protocol):
    """Hears of every commit, in order, on the event loop, just before those who wait for it do."""

    def on_commit(self, commands: Sequence[Command], outcomes: Sequence[Answer | StoreError]) -> None:
        """Note what was committed; also commands whose callers have gone. Must return at once, and raise nothing."""

    def on_failure(self) -> None:
        """Note that a commit has failed: what it held may be stored, and is never told."""


class StoreQueue(Protocol):
    """Runs commands and reads."""

    def submit(self, command: Command, *, namespace: str) -> Future[Answer]:
        """Queue a command."""

    def submit_series(
        self,
        series: Generator[Command, Answer | StoreError, _T],
        *,
        namespace: str,
        command_count: int,
        size_bytes: int,
    ) -> Future[_T]:
        """Queue a call of several commands, one after the other."""

    def load(self, query: EncodedLoadQuery, *, namespace: str) -> Future[EncodedLoadAnswer | LongLoad]:
        """Read one checkpoint, together with the others that wait."""

    def load_long(
        self, query: EncodedLoadQuery, position: tuple[int, int] | None, *, namespace: str
    ) -> Future[EncodedLoadAnswer | LongLoad]:
        """Read one checkpoint that may take long to find, from where `LongLoad` said that it goes on."""

    def scan(self, function: Callable[[], _T], *, namespace: str) -> Future[_T]:
        """Run a read that may take long."""

    def listen(self, listener: CommitListener) -> None:
        """Tell of commits from now on."""
