"""G1, G2, G3, G4, G5: a server that is killed at random moments loses nothing that it acknowledged.

The server is killed by SIGKILL again and again while many clients save, every other time without the process of its
engine, and each time the store is held against what they were told. A server with a seeded defect, which acknowledges
before it commits, must be caught by the same check. A missing flush cannot be shown by killing a process, since the
kernel keeps what it wrote: that a commit is flushed before it is acknowledged is proved in `test_sync_order`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from milepost import Client
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.verify import verify_store
from tests.support.killable_server import EARLY_ACK_SERVER, SERVER, KillableServer
from tests.support.save_history import Outcome, SaveHistory, check
from tests.support.saving_clients import SavingClients
from tests.support.store_views import ClientView, EngineView

_logger = logging.getLogger(__name__)

SEED = 20_261_123
CLIENT_COUNT = 16
KILL_COUNT = 50
KILLS_PER_VERIFY = 5
LIFE_S = (0.02, 1.0)
"""Between these, how long a server lives after it has said that it serves."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("k")


def kill_again_and_again(
    directory: Path, *, program: Sequence[str], kill_count: int, clients: SavingClients
) -> Iterator[list[str]]:
    """Kill the server at random moments; after each kill yield what the store has otherwise than it was
    acknowledged."""
    rng = random.Random(SEED)
    contents_since = 0
    with KillableServer(directory, program=program) as server:
        server.start()
        with clients:
            for kill_number in range(1, kill_count + 1):
                # Not a wait for an effect: the moment of the fault, drawn from the seed.
                clients.stopping.wait(rng.uniform(*LIFE_S))
                if kill_number % 2:
                    server.kill()
                else:
                    server.kill_front()
                if clients.stopping.is_set():
                    return
                next_since = clients.history.now()
                problems = _check_offline(server.data_dir, clients.history, contents_since)
                contents_since = next_since
                if kill_number % KILLS_PER_VERIFY == 0:
                    problems += verify_store(server.data_dir).problems
                yield problems
                server.start()
        # The clients have ended, each with an answer to its last call.
        with Client(server.target) as client:
            yield check(clients.history.snapshot(), ClientView(client))
        assert server.stop() == 0
        yield verify_store(server.data_dir).problems


def _check_offline(data_dir: Path, history: SaveHistory, contents_since: int) -> list[str]:
    # The snapshot comes after the kill, so that whatever it counts as open cannot be stored later than the engine is
    # read.
    sent = history.snapshot()
    engine = LmdbEngine.open(data_dir, low_disk_bytes=0)
    try:
        return check(sent, EngineView(engine), contents_since=contents_since)
    finally:
        engine.close()


def test_nothing_acknowledged_is_lost_by_a_server_killed_at_random_moments(directory: Path) -> None:
    clients = SavingClients(f"unix:{directory / 's'}", CLIENT_COUNT, SEED)

    for problems in kill_again_and_again(directory, program=SERVER, kill_count=KILL_COUNT, clients=clients):
        assert problems == []

    counts = clients.history.counts()
    figures = ", ".join(f"{counts[each]} {each.value}" for each in Outcome)
    _logger.info("%d kills: %s, %d replayed", KILL_COUNT, figures, clients.history.replayed_count)
    assert counts[Outcome.ACKNOWLEDGED] > KILL_COUNT * CLIENT_COUNT
    assert counts[Outcome.REFUSED] > 0
    assert counts[Outcome.OPEN] > 0
    assert clients.history.replayed_count > 0, "no answer was ever lost between a commit and its client"


def test_the_check_catches_a_server_that_acknowledges_before_it_commits(directory: Path) -> None:
    clients = SavingClients(f"unix:{directory / 's'}", CLIENT_COUNT, SEED)
    found: list[str] = []

    for problems in kill_again_and_again(directory, program=EARLY_ACK_SERVER, kill_count=10, clients=clients):
        found += problems
        if any("LOST" in problem for problem in found):
            break

    assert any("LOST" in problem for problem in found)
