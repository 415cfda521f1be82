"""Where a checkpoint is, in LangGraph's words and in milepost's."""

from __future__ import annotations

from typing import NamedTuple

from langchain_core.runnables import RunnableConfig


class Address(NamedTuple):
    """What a config points at."""

    thread_id: str
    scope: str
    checkpoint_id: str
    """Empty where it names none."""

    @classmethod
    def of(cls, config: RunnableConfig) -> Address:
        """Read a config as every method but `list` does: no namespace is the root."""
        configurable = config["configurable"]
        return cls(
            str(configurable["thread_id"]),
            configurable.get("checkpoint_ns") or "",
            str(configurable.get("checkpoint_id") or ""),
        )

    def config(self, checkpoint_id: str) -> RunnableConfig:
        """Return the config of a checkpoint beside this one."""
        return {
            "configurable": {
                "thread_id": self.thread_id,
                "checkpoint_ns": self.scope,
                "checkpoint_id": checkpoint_id,
            }
        }
