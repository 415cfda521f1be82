"""Calls that reach an engine as they came, as bytes: decoded right before they are run, answered as bytes again.

It is done where the engine is (in the storage process, or in the writer's and the readers' threads), so that the event
loop never looks into the calls that are many. What the bytes mean is a codec's matter: engines and lanes do not know.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec

from milepost_server.errors import OutcomeUnknownError, StoreError, internal_error
from milepost_server.model import (
    Answer,
    BatchSaveAnswer,
    BatchSaveCommand,
    Command,
    EncodedBatchSaveAnswer,
    EncodedBatchSaveCommand,
    EncodedLoadAnswer,
    EncodedLoadQuery,
    EncodedSaveAnswer,
    EncodedSaveCommand,
    LoadAnswer,
    LoadQuery,
    LongLoad,
    RefusedItem,
    SaveAnswer,
    SaveCommand,
    StoredSave,
)
from milepost_server.storage.port import Engine

_logger = logging.getLogger(__name__)


class CallCodec(Protocol):
    """Knows how calls are written."""

    def decode_save(self, body: bytes) -> SaveCommand:
        """Read and check a Save.

        Raises:
            StoreError: The first field at fault.
        """

    def encode_saved(self, answer: SaveAnswer) -> bytes:
        """Write what became of a Save."""

    def decode_items(self, bodies: Sequence[bytes], first_number: int) -> tuple[SaveCommand | RefusedItem, ...]:
        """Read and check items of a batch, the first of which has a number in it.

        Raises:
            StoreError: One is no Save at all, so that nothing is known of what it names.
        """

    def encode_results(self, outcomes: Sequence[SaveAnswer | StoreError]) -> bytes:
        """Write what became of items of a batch."""

    def decode_load(self, body: bytes) -> tuple[LoadQuery, frozenset[int]]:
        """Read and check a Load, and which compressions its caller accepts.

        Raises:
            StoreError: The first field at fault.
        """

    def encode_loaded(self, answer: LoadAnswer, query: LoadQuery, accepted: frozenset[int]) -> bytes:
        """Write a loaded checkpoint."""


def execute(engine: Engine, codec: CallCodec, commands: list[Command]) -> Sequence[Answer | StoreError]:
    """Run commands as `Engine.execute` does, those that are encoded too. One that cannot be read fails alone.

    The list is emptied, so that a large request is not in memory twice while it is committed.
    """
    commands.reverse()
    is_encoded: list[bool] = []
    decoded: list[Command | StoreError] = []
    while commands:
        is_encoded.append(isinstance(commands[-1], EncodedSaveCommand | EncodedBatchSaveCommand))
        decoded.append(_decoded(codec, commands.pop()))
    runnable = [each for each in decoded if not isinstance(each, StoreError)]
    answers = iter(engine.execute(runnable) if runnable else ())
    return [
        each if isinstance(each, StoreError) else _encoded(codec, each, next(answers)) if is_bytes else next(answers)
        for is_bytes, each in zip(is_encoded, decoded, strict=True)
    ]


def load(
    engine: Engine,
    codec: CallCodec,
    encoded: EncodedLoadQuery,
    *,
    is_long: bool,
    position: tuple[int, int] | None = None,
) -> EncodedLoadAnswer | LongLoad:
    """Run an encoded Load.

    Args:
        engine: Where.
        codec: Reads and writes it.
        encoded: The Load.
        is_long: It may take its time; otherwise one that may is returned as such. One that takes more than a turn is
            returned as such too, with where it goes on.
        position: Where it goes on, as such a one said.
    """
    query, accepted = codec.decode_load(encoded.body)
    if query.statuses and not is_long:
        # May look at many rows until one has the status.
        return LongLoad()
    answer = engine.load(msgspec.structs.replace(query, position=position))
    if isinstance(answer, LongLoad):
        return answer
    return EncodedLoadAnswer(codec.encode_loaded(answer, query, accepted))


def _decoded(codec: CallCodec, command: Command) -> Command | StoreError:
    try:
        if isinstance(command, EncodedSaveCommand):
            return codec.decode_save(command.body)
        if isinstance(command, EncodedBatchSaveCommand):
            first = command.first_number
            items = codec.decode_items(command.items, first)
            return BatchSaveCommand(items=items, first_number=first, failed=command.failed)
    except StoreError as error:
        # Without its traceback, whose frames hold the request.
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - a defect: it must not take the other commands of the batch along
        return internal_error(_logger, "a Save could not be read; nothing of it is stored", error)
    return command


def _encoded(codec: CallCodec, command: Command, outcome: Answer | StoreError) -> Answer | StoreError:
    try:
        if isinstance(command, SaveCommand) and isinstance(outcome, SaveAnswer):
            return EncodedSaveAnswer(codec.encode_saved(outcome), _stored(command, outcome))
        if isinstance(command, BatchSaveCommand) and isinstance(outcome, BatchSaveAnswer):
            return _encoded_batch(codec, command, outcome)
    except Exception:
        # A defect. It is stored, but nobody can be told what.
        _logger.exception("the answer to a Save could not be written for an unexpected error")
        return OutcomeUnknownError("the Save was run, but its answer could not be written; the log has the traceback")
    return outcome


def _encoded_batch(codec: CallCodec, command: BatchSaveCommand, answer: BatchSaveAnswer) -> EncodedBatchSaveAnswer:
    stored: list[StoredSave] = []
    for item, outcome in zip(command.items, answer.outcomes, strict=True):
        if isinstance(item, SaveCommand) and isinstance(outcome, SaveAnswer):
            stored += _stored(item, outcome)
    return EncodedBatchSaveAnswer(codec.encode_results(answer.outcomes), tuple(stored), answer.failed)


def _stored(command: SaveCommand, answer: SaveAnswer) -> tuple[StoredSave, ...]:
    """Return what is told of a Save: nothing of a replay."""
    if answer.is_replayed:
        return ()
    return (
        StoredSave(
            command.namespace,
            command.workflow_id,
            command.scope,
            answer.checkpoint_id,
            answer.sequence,
            answer.incarnation,
            answer.revision,
            answer.definition,
            command.current_step,
            int(command.status),
            answer.is_replaced,
            command.release_lease,
        ),
    )
