"""How much the database file grows for a Save: one commit each, and in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks import payloads
from benchmarks.http2 import Connection
from benchmarks.options import Options
from benchmarks.payloads import KIB
from benchmarks.processes import ServerProcess, real_server, scratch
from benchmarks.report import Figure
from milepost.v1 import checkpoint_store_pb2 as pb

NAME = "file size"
WORKFLOWS = 64


@dataclass(frozen=True)
class Case:
    """A series of Saves to a fresh store."""

    name: str
    initial: Sequence[bytes]
    """Saves that come before what is measured."""
    saves: Iterator[bytes]
    count: int
    batch_items: int
    target_kib: float


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    for make in (_one_of_a_thousand, _one_of_ten, _one_entry):
        for is_batched in (False, True):
            case = make(options)
            with scratch(options.directory) as directory:
                kib = _grow(case, directory / "data", is_batched=is_batched)
            how = f"batches of {case.batch_items}" if is_batched else "a commit each"
            detail = f"KiB of file for each of {case.count:,} Saves"
            yield Figure(NAME, f"{case.name}; {how}", kib, "KiB", case.target_kib, "at most", detail=detail)


def _grow(case: Case, data_dir: Path, *, is_batched: bool) -> float:
    with real_server(data_dir) as server:
        with closing(Connection(server.address, "Save")) as client:
            for request in case.initial:
                client.call(request)
            before = server.store_facts()
            if not is_batched:
                for request in itertools.islice(case.saves, case.count):
                    client.call(request)
        if is_batched:
            _send_batches(server, case)
        after = server.store_facts()
    if not is_batched:
        assert after.commits - before.commits >= case.count, "every Save has a commit of its own"
    return (after.file_bytes - before.file_bytes) / case.count / KIB


def _send_batches(server: ServerProcess, case: Case) -> None:
    saves = itertools.islice(case.saves, case.count)
    with closing(Connection(server.address, "BatchSave")) as client:
        while items := list(itertools.islice(saves, case.batch_items)):
            response = pb.BatchSaveResponse.FromString(client.call(payloads.batch_request(items)))
            for result in response.results:
                assert result.HasField("saved"), result.error.message


def _one_of_a_thousand(options: Options) -> Case:
    """Incremental: one entry of 100 B changed, of 1,000."""
    workflow_id, checkpoint_id = payloads.workflow_name(1), payloads.new_checkpoint_id()
    values = (payloads.incompressible(100, seed) for seed in itertools.count())
    initial = pb.SaveRequest(
        workflow_id=workflow_id,
        checkpoint_id=checkpoint_id,
        state={f"entry-{number:04d}": payloads.data_value(next(values)) for number in range(1_000)},
    )

    def saves() -> Iterator[bytes]:
        base_id = checkpoint_id
        for number in itertools.count():
            request = pb.SaveRequest(
                workflow_id=workflow_id,
                checkpoint_id=payloads.new_checkpoint_id(),
                base_checkpoint_id=base_id,
                state={f"entry-{number * 7 % 1_000:04d}": payloads.data_value(next(values))},
            )
            base_id = request.checkpoint_id
            yield request.SerializeToString()

    name = "incremental Save, 1 of 1,000 entries of 100 B changed"
    return Case(name, [initial.SerializeToString()], saves(), options.amount(10_000, 2_000), 100, 1.25)


def _one_of_ten(options: Options) -> Case:
    """Full state: one entry of 10 KB changed, of ten."""
    workflow_id = payloads.workflow_name(1)
    values = (payloads.incompressible(10_240, seed) for seed in itertools.count())
    state = {f"entry-{number}": next(values) for number in range(10)}

    def saves() -> Iterator[bytes]:
        for number in itertools.count():
            yield pb.SaveRequest(
                workflow_id=workflow_id,
                checkpoint_id=payloads.new_checkpoint_id(),
                state={key: payloads.data_value(value) for key, value in state.items()},
            ).SerializeToString()
            state[f"entry-{number % 10}"] = next(values)

    requests = saves()
    name = "full Save, 1 of 10 entries of 10 KB changed"
    return Case(name, [next(requests)], requests, options.amount(1_000, 300), 50, 14.0)


def _one_entry(options: Options) -> Case:
    """One entry of 2 KB, over and over, going round some workflows."""
    requests = payloads.saves(WORKFLOWS)
    initial = list(itertools.islice(requests, WORKFLOWS))
    return Case("Save of one entry of 2 KB", initial, requests, options.amount(4_000, 1_000), 100, 3.2)
