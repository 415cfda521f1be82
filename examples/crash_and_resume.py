"""Kill a worker and the server in the middle of a job with `kill -9`, and watch another worker take over: `make demo`.

The job counts the words of Python's own standard library, one package a step. Two workers, each a process of its own,
share a real server. The first starts the job; the second serves, which means that it takes up whatever nobody runs.
When the first has begun the largest step, it is killed with SIGKILL, and the server too, which is then started again on
its data. The lease of the killed worker runs out a second later, and the other one goes on behind the last finished
step.

Every start of a step is also noted in a journal, a plain file that milepost knows nothing of. At the end the journal
must say that no finished step ran again, and the result must equal that of a run that was never interrupted. The exit
status is 0 only if all of that holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from milepost import Checkpoint, Client, Context, InMemoryStore, Status, Workflow
from milepost.testing import LocalServer, local_server

JOB = "count-words"
LEASE_TTL_S = 1.0
"""How long a killed worker keeps the others waiting. The default is 30 s; a demonstration should be short."""
TOP_WORDS = 5
WORD = re.compile(r"[A-Za-z]{4,}")
PACKAGES = (
    "asyncio",
    "collections",
    "concurrent",
    "email",
    "encodings",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
KILLED_STEP = "modules a to h"
"""Dozens of large files: whoever is killed when this step has begun is killed in the middle of it."""
MODULES = {KILLED_STEP: "abcdefgh_", "modules i to r": "ijklmnopqr", "modules s to z": "stuvwxyz"}
"""The modules that lie outside of packages, by their first letter."""


# The job.


def step_files() -> dict[str, list[Path]]:
    """Return the files of each step, in the order of the steps: some packages, large modules in between, the rest."""
    library = Path(sysconfig.get_path("stdlib"))
    work = {name: sorted((library / name).rglob("*.py")) for name in PACKAGES}
    work |= {
        name: sorted(path for path in library.glob("*.py") if path.name[0].lower() in letters)
        for name, letters in MODULES.items()
    }
    names = list(work)
    names.remove(KILLED_STEP)
    names.insert(len(names) // 2, KILLED_STEP)
    return {name: [path for path in work[name] if "test" not in path.parts] for name in names}


def count_words(files: list[Path]) -> dict[str, Any]:
    """Return how many words the files have, and the most frequent ones."""
    words: Counter[str] = Counter()
    for file in files:
        words.update(WORD.findall(file.read_text(encoding="utf-8", errors="replace").lower()))
    top = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:TOP_WORDS]
    return {"files": len(files), "words": words.total(), "different": len(words), "top": dict(top)}


FILES = step_files()
job: Workflow[dict[str, Any]] = Workflow("count-words", dict)


def count(state: dict[str, Any], context: Context) -> dict[str, Any]:
    """Count the words of one package: what each step does."""
    tell("started", context.step)
    return {context.step: count_words(FILES[context.step])}


for name in FILES:
    job.step(count, id=name)


# The workers.


@dataclass(frozen=True)
class Event:
    """A line of the journal."""

    what: str
    """started, completed."""
    step: str
    pid: int


def tell(what: str, step: str = "") -> None:
    """Note what happens in the journal, then on stdout, where whoever started this process reads it."""
    journal = os.environ.get("JOURNAL")
    if journal is not None:
        line = json.dumps(asdict(Event(what, step, os.getpid()))) + "\n"
        with Path(journal).open("a", encoding="utf-8") as file:
            file.write(line)
        sys.stdout.write(line)
        sys.stdout.flush()


def work(what: str, target: str) -> None:
    """Run the job, or take up what nobody runs: what a worker process does."""
    with Client(target) as client:
        runner = job.bind(client, lease_ttl_s=LEASE_TTL_S)
        if what == "run":
            runner.run(JOB, {})
        else:
            tell("serving")
            runner.serve(poll_s=0.2, handle_signals=True)


class Worker:
    """A worker process, and what it tells."""

    def __init__(self, what: str, server: LocalServer, journal: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, what, server.target],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JOURNAL": str(journal)},
        )
        self.pid = self._process.pid

    def events(self) -> Generator[Event]:
        """Yield what it tells, as it tells it, until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield Event(**json.loads(line))

    def kill(self) -> None:
        """End it at once. It gets no chance to clean up or to save."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def stop(self) -> int:
        """Ask it to end, and return its exit status."""
        self._process.terminate()
        return self._process.wait()


@contextlib.contextmanager
def worker(what: str, server: LocalServer, journal: Path) -> Generator[Worker]:
    """Start a worker; it has ended when the block has."""
    one = Worker(what, server, journal)
    try:
        yield one
    finally:
        one.kill()


# The story.


def tell_story(server: LocalServer, journal: Path) -> tuple[int, int]:
    """Run the job with two workers, of which one is killed, and the server too; return the workers' process ids."""
    with worker("serve", server, journal) as second:
        second_events = second.events()
        next(second_events)
        with worker("run", server, journal) as first:
            print(f"worker {first.pid} runs the job; worker {second.pid} serves, and has nothing to do")
            for event in first.events():
                print(f"  {event.pid}  {event.step}")
                if event.step == KILLED_STEP:
                    first.kill()
                    print(f"  kill -9 {first.pid}")
                    break
        server.kill()
        print("  kill -9 the server; another one starts on its data")
        server.restart()
        print(f"worker {second.pid} takes over when the lease of {first.pid} has run out")
        for event in second_events:
            print(f"  {event.pid}  {event.step}")
            if event.step == list(FILES)[-1]:
                break
        with server.client() as client:
            # Waits while the second worker holds the lease for its last step, then returns the stored result.
            job.bind(client).resume(JOB)
        if second.stop() != 0:
            raise SystemExit(f"worker {second.pid} failed")
    return first.pid, second.pid


def check(events: list[Event], first: int, second: int, history: list[Checkpoint]) -> dict[str, bool]:
    """Return what must be true, and whether it is."""
    names = list(FILES)
    by_first = [event.step for event in events if event.what == "started" and event.pid == first]
    by_second = [event.step for event in events if event.what == "started" and event.pid == second]
    finished_first = by_first[:-1]
    return {
        f"worker {first} finished {len(finished_first)} steps, worker {second} the other {len(by_second)}": bool(
            finished_first
        )
        and finished_first + by_second == names,
        f"no finished step ran again: {len(by_first) + len(by_second)} starts of {len(names)} steps": not set(
            finished_first
        )
        & set(by_second)
        and len(by_first) + len(by_second) == len(names) + 1,
        f"the history has {len(history)} checkpoints, the input and one for each step, in order and once": [
            (checkpoint.sequence, checkpoint.current_step) for checkpoint in history
        ]
        == list(enumerate(["", *names], start=1)),
        "the result equals that of a run that was never interrupted": history[-1].status is Status.COMPLETED
        and history[-1].state == job.bind(InMemoryStore()).run(JOB, {}).state,
    }


def main() -> int:
    """Tell the story; return the exit status."""
    print(f"{len(FILES)} steps: count the words of Python's standard library, one package a step\n")
    with tempfile.TemporaryDirectory() as scratch, local_server() as server:
        journal = Path(scratch) / "journal"
        pids = tell_story(server, journal)
        events = [Event(**json.loads(line)) for line in journal.read_text(encoding="utf-8").splitlines()]
        with server.client() as client:
            history = list(client.list(JOB, newest_first=False, with_state=True))
    result = history[-1].state.values()
    print(f"\n{sum(each['words'] for each in result):,} words in {sum(each['files'] for each in result):,} files\n")
    facts = check(events, *pids, history)
    for fact, is_true in facts.items():
        print(f"{'yes' if is_true else 'NO '}  {fact}")
    return 0 if all(facts.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work(sys.argv[1], sys.argv[2])
    else:
        sys.exit(main())
