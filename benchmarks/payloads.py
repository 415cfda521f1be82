"""Encoded requests, each with ids and content of its own.

Encoding a message for every call would cost the generator more than sending it, so a request is encoded once, with
marks in the places that differ, and the marks are written over. They are as long as what takes their place, so no
length in the encoding changes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator

from google.protobuf.wrappers_pb2 import BytesValue

from milepost.v1 import checkpoint_pb2, checkpoint_store_pb2

KIB = 1024
MIB = 1024 * KIB

VALUE_BYTES = 2048
ENTRY_KEY = "state"
_WORKFLOW_MARK = "W" * 12
_CHECKPOINT_MARK = "C" * 24
_VALUE_MARK = b"V" * 24

_ids = itertools.count(1)
"""Checkpoint ids are used once in the life of the process, whatever server they go to."""


def incompressible(size_bytes: int, seed: int) -> bytes:
    """Return bytes that no compression makes smaller; the same ones for the same seed."""
    return random.Random(seed).randbytes(size_bytes)


def data_value(payload: bytes) -> checkpoint_pb2.Value:
    """Return opaque bytes as the value of an entry."""
    return checkpoint_pb2.Value(data=payload, codec="bytes")


def workflow_name(number: int) -> str:
    """Return a workflow id of fixed length."""
    return f"wf-{number:09d}"


def new_checkpoint_id() -> str:
    """Return a checkpoint id of fixed length that has not been given before."""
    return f"{next(_ids):024x}"


def saves(workflows: int, *, first: int = 0, value_bytes: int = VALUE_BYTES) -> Iterator[bytes]:
    """Yield encoded `SaveRequest`s of a new entry of `value_bytes`, going round the workflows."""
    template = checkpoint_store_pb2.SaveRequest(
        workflow_id=_WORKFLOW_MARK,
        checkpoint_id=_CHECKPOINT_MARK,
        current_step="step",
        state={ENTRY_KEY: data_value(_VALUE_MARK + incompressible(value_bytes - len(_VALUE_MARK), seed=1))},
    ).SerializeToString()
    # The order of fields is that of their numbers.
    before, rest = template.split(_WORKFLOW_MARK.encode())
    between, rest = rest.split(_CHECKPOINT_MARK.encode())
    after, last = rest.split(_VALUE_MARK)
    for number in itertools.count():
        workflow = workflow_name(first + number % workflows).encode()
        checkpoint = new_checkpoint_id().encode()
        yield b"".join((before, workflow, between, checkpoint, after, checkpoint, last))


def batch_saves(workflows: int, items: int) -> Iterator[bytes]:
    """Yield encoded `BatchSaveRequest`s of so many Saves."""
    requests = saves(workflows)
    while True:
        yield batch_request(itertools.islice(requests, items))


def batch_request(items: Iterable[bytes]) -> bytes:
    """Return an encoded `BatchSaveRequest` of encoded `SaveRequest`s."""
    # On the wire its items, field 1, are no different from bytes in a field 1, one message behind the other.
    return b"".join(BytesValue(value=item).SerializeToString() for item in items)


def loads(workflows: int, first: int = 0) -> Iterator[bytes]:
    """Yield encoded `LoadRequest`s of the newest checkpoint, going round the workflows."""
    return _by_workflow(
        checkpoint_store_pb2.LoadRequest(workflow_id=_WORKFLOW_MARK).SerializeToString(), workflows, first
    )


def lists(workflows: int, first: int = 0, *, page_size: int = 10) -> Iterator[bytes]:
    """Yield encoded `ListRequest`s of a first page, going round the workflows."""
    request = checkpoint_store_pb2.ListRequest(workflow_id=_WORKFLOW_MARK, page_size=page_size)
    return _by_workflow(request.SerializeToString(), workflows, first)


def _by_workflow(template: bytes, workflows: int, first: int) -> Iterator[bytes]:
    before, after = template.split(_WORKFLOW_MARK.encode())
    for number in itertools.count():
        yield before + workflow_name(first + number % workflows).encode() + after
