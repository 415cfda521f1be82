"""Kill a job and its server half way, start both again, and watch the job go on: `make demo`.

The job counts the words of Python's own standard library, one package a step, and saves a checkpoint after each. It
runs in a process of its own against a real server. When it begins its largest step, both processes are killed with
SIGKILL. Then both are started again on the same data, and the job continues behind its last checkpoint.

Every step is also noted in a journal, a plain file that milepost knows nothing of. At the end the journal must say
that no finished step ran again, and the result must equal that of a run that was never interrupted. The exit status
is 0 only if all of that holds.
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
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from milepost import Checkpoint, CheckpointStore, Client, InMemoryStore, Saved, Status, WorkflowNotFoundError
from milepost.testing import LocalServer, local_server

JOB = "count-words"
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


@dataclass(frozen=True)
class Event:
    """A line of the journal."""

    what: str
    """started, saved, resumed or completed."""
    step: str
    pid: int
    sequence: int = 0
    """Of the checkpoint, where there is one."""
    checkpoint_id: str = ""


Notify = Callable[[str, str, Checkpoint | Saved | None], None]
"""Takes what happened, in which step, and the checkpoint, where there is one."""


# The job.


def steps() -> dict[str, list[Path]]:
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


def run_job(store: CheckpointStore, notify: Notify) -> dict[str, Any]:
    """Run the job from wherever it stands, and return its result."""
    work = steps()
    try:
        checkpoint = store.load(JOB)
        notify("resumed", checkpoint.current_step, checkpoint)
    except WorkflowNotFoundError:
        store.save(JOB, state={}, after="start")
        checkpoint = store.load(JOB)
    state, last = checkpoint.state, list(work)[-1]
    after: Checkpoint | Saved = checkpoint
    for step in [step for step in work if step not in checkpoint.completed_steps]:
        notify("started", step, None)
        state[step] = count_words(work[step])
        status = Status.COMPLETED if step == last else Status.RUNNING
        after = store.save(JOB, state=state, current_step=step, completed_steps=[step], after=after, status=status)
        notify("saved", step, after)
    return state


def work_at(target: str, journal: Path) -> None:
    """Run the job against a server: what the worker process does.

    Each event goes to the journal first, then to stdout, where whoever started this process reads it.
    """
    with Client(target) as client, journal.open("a", encoding="utf-8") as file:

        def notify(what: str, step: str, checkpoint: Checkpoint | Saved | None) -> None:
            event = Event(what, step, os.getpid())
            if checkpoint is not None:
                event = replace(event, sequence=checkpoint.sequence, checkpoint_id=checkpoint.checkpoint_id)
            line = json.dumps(asdict(event))
            print(line, file=file, flush=True)
            print(line, flush=True)

        run_job(client, notify)


# The story.


class Worker:
    """A worker process, and what it tells."""

    def __init__(self, target: str, journal: Path) -> None:
        command = [sys.executable, __file__, target, str(journal)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def events(self) -> Generator[Event]:
        """Yield what it tells, as it tells it, until it ends."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                yield Event(**json.loads(line))

    def kill(self) -> None:
        """End it at once. It gets no chance to clean up or to save."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Return its exit status when it has ended."""
        return self._process.wait()


def tell(event: Event) -> None:
    """Print an event of a worker."""
    if event.what == "resumed":
        print(f'  continues behind checkpoint {event.sequence}, "{event.step}"')
    elif event.what == "saved":
        print(f"  {event.step:<16} checkpoint {event.sequence}")


def run_until_killed(server: LocalServer, journal: Path) -> Worker:
    """Start a worker; when it has begun the step that it is to be killed in, kill it and the server."""
    worker = Worker(server.target, journal)
    print(f"\nserver {server.pid} serves, worker {worker.pid} begins")
    with contextlib.closing(worker.events()) as events:
        for event in events:
            tell(event)
            if (event.what, event.step) == ("started", KILLED_STEP):
                worker.kill()
                server.kill()
                print(f"  {event.step:<16} begun, then: kill -9 {worker.pid} {server.pid}")
                break
    return worker


def run_to_the_end(server: LocalServer, journal: Path) -> Worker:
    """Start a worker and let it finish."""
    worker = Worker(server.target, journal)
    print(f"\nserver {server.pid} serves, worker {worker.pid} begins")
    for event in worker.events():
        tell(event)
    if worker.wait() != 0:
        raise SystemExit(f"worker {worker.pid} failed")
    return worker


def check(events: list[Event], killed: Worker, finisher: Worker, history: list[Checkpoint]) -> dict[str, bool]:
    """Return what must be true, and whether it is."""
    names = list(steps())
    starts = Counter(event.step for event in events if event.what == "started")
    acknowledged = {event.checkpoint_id for event in events if event.what == "saved"}
    finished_first = {event.step for event in events if event.what == "saved" and event.pid == killed.pid}
    started_second = {event.step for event in events if event.what == "started" and event.pid == finisher.pid}
    head = history[-1]
    return {
        f"worker {killed.pid} finished {len(finished_first)} steps, worker {finisher.pid} the other "
        f"{len(names) - len(finished_first)}": bool(finished_first)
        and set(names) - finished_first - started_second <= {KILLED_STEP},
        f"no finished step ran again: {starts.total()} starts of {len(names)} steps": not finished_first
        & started_second
        and all(count == 1 for step, count in starts.items() if step != KILLED_STEP),
        f"every acknowledged checkpoint is there, {len(history)} in all, in order and once": [
            (checkpoint.sequence, checkpoint.current_step) for checkpoint in history
        ]
        == list(enumerate(["", *names], start=1))
        and acknowledged <= {checkpoint.checkpoint_id for checkpoint in history},
        "the last one says that all steps are completed": head.status == Status.COMPLETED
        and head.completed_step_count == len(names),
        "the result equals that of a run that was never interrupted": head.state
        == run_job(InMemoryStore(), lambda what, step, checkpoint: None),
    }


def main() -> int:
    """Tell the story; return the exit status."""
    print(f"{len(steps())} steps: count the words of Python's standard library, with a checkpoint after each")
    with tempfile.TemporaryDirectory() as scratch, local_server(data_dir=Path(scratch) / "data") as server:
        journal = Path(scratch) / "journal"
        killed = run_until_killed(server, journal)
        server.restart()
        finisher = run_to_the_end(server, journal)
        events = [Event(**json.loads(line)) for line in journal.read_text(encoding="utf-8").splitlines()]
        with server.client() as client:
            history = list(client.list(JOB, newest_first=False, with_state=True))
    result = history[-1].state.values()
    print(f"\n{sum(each['words'] for each in result):,} words in {sum(each['files'] for each in result):,} files\n")
    facts = check(events, killed, finisher, history)
    for fact, is_true in facts.items():
        print(f"{'yes' if is_true else 'NO '}  {fact}")
    return 0 if all(facts.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work_at(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(main())
