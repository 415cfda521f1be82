"""Names that a run gives to what it stores and to what its steps ask of others: the same on every host and attempt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from milepost.runner.step import Step

__all__ = [
    "child_scope",
    "idempotency_key",
    "item_keys",
    "task_name",
]

_KEY_CHARS_MAX: Final = 96
"""Longer item keys, as escaped, are named by their digest: a scope holds at most 1 KiB."""


def idempotency_key(
    namespace: str,
    workflow_id: str,
    first_checkpoint_id: str,
    scope: str,
    step_id: str,
    *,
    item_key: str | None = None,
    iteration: int | None = None,
) -> str:
    """Return 64 hexadecimal digits that stand for one effect: of this step, item and iteration in this workflow.

    Every attempt on every host has the same; a fork, or a workflow that was deleted and made again, has another, since
    its first checkpoint is another. The formula never changes: keys that were handed to other services stay valid.

    Raises:
        ValueError: Both an item and an iteration were given; no step has both.
    """
    if item_key is not None and iteration is not None:
        raise ValueError("a step runs for items or repeats, not both")
    turn = ""
    if item_key is not None:
        turn = f"item:{item_key}"
    elif iteration is not None:
        turn = f"iteration:{iteration}"
    digest = hashlib.sha256()
    for part in (namespace, workflow_id, first_checkpoint_id, scope, step_id, turn):
        content = part.encode("utf-8", "surrogatepass")
        # With its length before it no two lists of parts read the same.
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


def item_keys(step: Step[Any], items: Sequence[object]) -> list[str]:
    """Return the key of each item, in order.

    Raises:
        ValueError: Two items have one key.
        TypeError: `key` answered something other than str or int.
    """
    if step.key is None:
        return [str(index) for index in range(len(items))]
    keys: list[str] = []
    seen: dict[str, int] = {}
    for index, item in enumerate(items):
        key = step.key(item)
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise TypeError(
                f"step {step.id!r}: key answered {type(key).__name__} for item {index}; it must answer str or int"
            )
        text = str(key)
        if text in seen:
            raise ValueError(f"step {step.id!r}: items {seen[text]} and {index} have the same key; keys must differ")
        seen[text] = index
        keys.append(text)
    return keys


def task_name(step_id: str, item_key: str | None = None) -> str:
    """Return how records name a step, or one item of it: `charge`, `charge[7]`. At most 512 bytes."""
    return step_id if item_key is None else f"{step_id}[{_escaped(item_key)}]"


def child_scope(
    scope: str, step_id: str, *, item_key: str | None = None, iteration: int | None = None, number: int = 1
) -> str:
    """Return the scope of a child workflow.

    Args:
        scope: The scope of the parent; "" is the root.
        step_id: The step that runs it.
        item_key: The item that the step runs for.
        iteration: The turn of the step's loop.
        number: From 1: which child of the step it is.
    """
    name = task_name(step_id, item_key)
    if iteration is not None:
        name += f"#{iteration}"
    if number > 1:
        name += f":{number}"
    return f"{scope}/{name}" if scope else name


def _escaped(item_key: str) -> str:
    """Return a key as it can stand between brackets: escaped, or `~` and its digest where that is long."""
    escaped = quote(item_key, safe=" :@+,=", errors="surrogatepass").replace("~", "%7E")
    if len(escaped) <= _KEY_CHARS_MAX:
        return escaped
    return "~" + hashlib.sha256(item_key.encode("utf-8", "surrogatepass")).hexdigest()[:40]
