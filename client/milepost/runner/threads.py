"""Daemon threads for steps: reused, and never waited for when the process ends.

`concurrent.futures` joins its threads at exit, and a step that hangs would keep the process from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

__all__ = ["DaemonThreads"]

IDLE_S: Final = 1.0
"""How long a thread without work is kept."""


class DaemonThreads:
    """Runs each function in a thread of its own at that time. The caller bounds how many there are."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Callable[[], None]]] = []
        self._made = 0

    def run(self, function: Callable[[], None]) -> None:
        """Run a function that raises nothing. Returns at once."""
        with self._lock:
            if self._idle:
                self._idle.pop().put(function)
                return
            self._made += 1
            number = self._made
        inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        inbox.put(function)
        threading.Thread(target=self._work, args=(inbox,), name=f"{self._name}-{number}", daemon=True).start()

    def _work(self, inbox: SimpleQueue[Callable[[], None]]) -> None:
        while True:
            try:
                function = inbox.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if inbox not in self._idle:
                        continue  # It was taken just now: work is coming.
                    self._idle.remove(inbox)
                return
            function()
            # Nothing of the work is held on to while the thread is idle.
            del function
            with self._lock:
                self._idle.append(inbox)
