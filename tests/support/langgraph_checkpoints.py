"""Checkpoints as LangGraph makes them, for tests that talk to a saver without a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6


def config_of(thread_id: str, scope: str | None = "", checkpoint_id: str | None = None) -> RunnableConfig:
    configurable: dict[str, Any] = {"thread_id": thread_id}
    if scope is not None:
        configurable["checkpoint_ns"] = scope
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def make_checkpoint(
    values: Mapping[str, Any],
    versions: Mapping[str, str | int | float] | None = None,
    *,
    checkpoint_id: str | None = None,
    versions_seen: Mapping[str, dict[str, str | int | float]] | None = None,
) -> Checkpoint:
    return {
        "v": 4,
        "id": checkpoint_id or str(uuid6()),
        "ts": "2026-11-23T00:00:00+00:00",
        "channel_values": dict(values),
        "channel_versions": dict(versions if versions is not None else dict.fromkeys(values, 1)),
        "versions_seen": dict(versions_seen or {}),
        "updated_channels": sorted(values),
    }


def metadata_of(step: int = 0, **extra: Any) -> CheckpointMetadata:
    made: CheckpointMetadata = {"source": "loop", "step": step, "parents": {}, **extra}  # type: ignore[typeddict-item]  # open by design
    return made


async def put(
    saver: BaseCheckpointSaver[Any],
    config: RunnableConfig,
    values: Mapping[str, Any],
    versions: Mapping[str, Any] | None = None,
    *,
    new: Sequence[str] | None = None,
    checkpoint_id: str | None = None,
    **extra: Any,
) -> RunnableConfig:
    """Put one checkpoint behind the config's; `new` names the channels that are told as written, default all."""
    checkpoint = make_checkpoint(values, versions, checkpoint_id=checkpoint_id)
    known = checkpoint["channel_versions"]
    new_versions = {channel: known[channel] for channel in (known if new is None else new)}
    return await saver.aput(config, checkpoint, metadata_of(**extra), new_versions)


def checkpoint_id_of(config: RunnableConfig) -> str:
    found = config["configurable"]["checkpoint_id"]
    assert isinstance(found, str)
    return found
