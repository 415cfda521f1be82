"""Entries as a run holds them, and the effect of a step: the entries that it left different.

A run keeps entries encoded. Each step gets values of its own, decoded for it, and what it leaves is compared with what
it got, encoded where it differs, and read back: no live object crosses a step's boundary, and a resumed run cannot
differ from one that was never interrupted. A value that does not come back equal is an error at the step that made it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from typing_extensions import override

from milepost._refusals import child_path, type_name
from milepost._state import EncodedValue
from milepost.codecs import Codec, JsonCodec
from milepost.errors import CodecError, StateConflictError, StateSchemaError
from milepost.runner.entry import Entry, Exactly
from milepost.runner.reducers import last
from milepost.runner.state_type import DELETE, Replace, StateType

__all__ = ["EMPTY_PATCH", "Entries", "Patch", "apply", "collect", "effect_of", "from_record", "item_result", "merge"]
__all__ += ["to_record"]

S = TypeVar("S")


class Entries:
    """An immutable state: entries by key, encoded. Make it with `of`; hands out values that belong to the caller.

    Entries are in the order of their keys, as a store reads them: a step that goes through them sees the same order in
    a resumed run.
    """

    __slots__ = ("_codec", "_entries", "_made", "kept_for_items")

    def __init__(self, entries: dict[str, Entry], codec: Codec) -> None:
        self._entries = entries
        self._codec = codec
        # A state that was made to check these entries, for the first who asks for one.
        self._made: list[Any] = []
        self.kept_for_items: Any = None
        """What `items` keeps between the calls of a step that runs for each item."""

    @classmethod
    def of(cls, values: Mapping[str, Any], codec: Codec, where: str = "") -> Entries:
        """Encode a state and read it back.

        Args:
            values: The entries.
            codec: Encodes each value.
            where: Begins the message of an error, for example "step 'price'".

        Raises:
            CodecError: A value cannot be encoded, or does not come back equal; has the path of the culprit.
        """
        exactly = Exactly(codec, where)
        entries = {key: exactly.entry(key, value, exactly.encode(key, value)) for key, value in values.items()}
        return cls(dict(sorted(entries.items())), codec)

    @classmethod
    def of_state(cls, state: S, state_type: StateType[S], codec: Codec, where: str) -> Entries:
        """Encode a state of the declared type and read it back.

        Raises:
            TypeError: It is of another type.
            CodecError: A value cannot be encoded, or does not come back equal; has the path of the culprit.
            StateSchemaError: A value is not of its field's type.
        """
        entries = cls.of(state_type.to_entries(state), codec, where)
        if state_type.fields is not None:
            entries._made.append(_require_readable(entries, state, state_type, where))  # noqa: SLF001  its own class
        return entries

    @property
    def codec(self) -> Codec:
        """What the values are encoded by."""
        return self._codec

    @property
    def by_key(self) -> Mapping[str, Entry]:
        """The entries."""
        return self._entries

    def values(self) -> dict[str, Any]:
        """Return all values, decoded for the caller."""
        return {key: entry.value(key) for key, entry in self._entries.items()}

    def encoded(self) -> dict[str, EncodedValue]:
        """Return what a store takes in place of the values. For an entry that has not changed it is the same object."""
        return {key: entry.encoded() for key, entry in self._entries.items()}

    def state_as(self, state_type: StateType[S]) -> S:
        """Return a state of the declared type, decoded for the caller.

        Raises:
            StateSchemaError: The entries are none.
        """
        try:
            made: S = self._made.pop()  # in one step: nobody else gets it
        except IndexError:
            return state_type.from_entries(self.values())
        return made

    def value(self, key: str) -> Any:
        """Return one value, decoded for the caller; None where there is no such entry."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value(key)

    def digest(self) -> str:
        """Return 64 hexadecimal digits that stand for keys and values, whatever the order of the entries."""
        digest = hashlib.sha256()
        for key in sorted(self._entries):
            for part in (key, self._entries[key].content):
                content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
                digest.update(len(content).to_bytes(8, "big"))
                digest.update(content)
        return digest.hexdigest()

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    @override
    def __repr__(self) -> str:
        # Characters count as bytes.
        size_bytes = sum(len(key) + len(entry.content) for key, entry in self._entries.items())
        return f"Entries(keys={sorted(self._entries)}, size_bytes={size_bytes})"


@dataclass(frozen=True, slots=True)
class Patch:
    """What a step changed. The values are encoded, and have been read back."""

    entries: Mapping[str, Entry] = field(default_factory=dict, repr=False)
    """Those that are new or different."""
    removed: frozenset[str] = frozenset()
    """Entries that are gone."""
    result: tuple[Entries, Entries] | None = field(default=None, repr=False, compare=False)
    """Entries that the patch was made of, and what it makes of them, where that is known."""

    @property
    def is_empty(self) -> bool:
        """Nothing changed."""
        return not self.entries and not self.removed


EMPTY_PATCH: Final = Patch()


def effect_of(before: Entries, left: S, returned: object, state_type: StateType[S], step_id: str) -> Patch:
    """Return what a step changed.

    Args:
        before: The entries the step was given a copy of.
        left: That copy, as the step left it.
        returned: What the step's function answered: None, the copy counts; a mapping, laid on the copy; a state of the
            declared type; or `Replace`.
        state_type: The declared type.
        step_id: For errors.

    Raises:
        TypeError: The answer is none of these.
        StateSchemaError: What is left is not of the declared type.
        CodecError: A value cannot be encoded, or does not come back equal; has the path of the culprit.
    """
    where = f"step {step_id!r}"
    try:
        found = _entries_left(left, returned, state_type, where)
    except StateSchemaError as error:
        raise StateSchemaError(f"{where}: {error.message}") from None
    after, model = found
    patch = _difference(before, after, where)
    if state_type.fields is not None and (not patch.is_empty or state_type.hides_fields):
        entries = _laid(before, patch)
        # The others are as the step got them.
        made = _require_readable(entries, model, state_type, where, before.by_key.keys() - patch.entries.keys())
        entries._made.append(made)  # noqa: SLF001  the other half of one class
        # The usual next thing is to lay this very patch on these very entries.
        patch = Patch(patch.entries, patch.removed, (before, entries))
    return patch


def apply(entries: Entries, patch: Patch) -> Entries:
    """Return the entries with a patch laid on them."""
    if patch.is_empty:
        return entries
    if patch.result is not None and patch.result[0] is entries:
        return patch.result[1]
    return _laid(entries, patch)


def _laid(entries: Entries, patch: Patch) -> Entries:
    laid = {**entries.by_key, **patch.entries}
    if len(laid) > len(entries):
        laid = dict(sorted(laid.items()))
    for key in patch.removed:
        laid.pop(key, None)
    return Entries(laid, entries.codec)


def merge(
    base: Entries,
    branches: Sequence[tuple[str, Patch]],
    reducers: Mapping[str, Callable[[Any, Any, Any], Any]],
) -> Patch:
    """Return one patch with the effects of branches that all started from `base`.

    Args:
        base: The entries before the branches.
        branches: Step id and effect of each, in the order of declaration: the result depends on it, never on timing.
        reducers: By entry: merges two different effects. Without one they must be equal.

    Raises:
        StateConflictError: Branches left different values in one entry, and there is no reducer, or it refused.
        CodecError: What a reducer answered cannot be encoded, or does not come back equal.
    """
    if len(branches) == 1:
        return branches[0][1]
    touched: dict[str, list[tuple[str, Entry | None]]] = {}
    for step_id, patch in branches:
        for key, entry in patch.entries.items():
            touched.setdefault(key, []).append((step_id, entry))
        for key in patch.removed:
            touched.setdefault(key, []).append((step_id, None))
    entries: dict[str, Entry] = {}
    removed: set[str] = set()
    for key, effects in touched.items():
        first = effects[0][1]
        reducer = reducers.get(key)
        # With a reducer equal values are still two effects: 0 to 1 twice is 2 where they are added.
        if all(entry == first for _, entry in effects) and (len(effects) == 1 or first is None or reducer is None):
            result = first
        else:
            result = _reduced(key, effects, base, reducer)
        if result is None:
            removed.add(key)
        else:
            entries[key] = result
    return Patch(entries, frozenset(removed))


def to_record(patch: Patch) -> dict[str, Any]:
    """Return a patch as the value of a record."""
    return {
        "set": {key: entry.value(key) for key, entry in patch.entries.items()},
        "removed": sorted(patch.removed),
    }


def from_record(value: Any, codec: Codec) -> Patch:
    """Return the patch that `to_record` made a record of.

    Raises:
        CodecError: The record is no patch.
    """
    match value:
        case {"set": dict(changed), "removed": list(removed), **rest} if not rest:
            return Patch(Entries.of(changed, codec, "record").by_key, frozenset(removed))
        case _:
            raise CodecError("the record of a finished branch is no patch", path="$", type=type_name(type(value)))


def item_result(returned: object, state_type: StateType[Any], codec: Codec, step_id: str, item_key: str) -> Any:
    """Return the result of one item as the codec reads it back, for `collect` and for its record.

    Raises:
        CodecError: It cannot be encoded, or does not come back equal.
        TypeError: It is an awaitable: the function is not async, and forgot to wait.
    """
    where = f"step {step_id!r}, item {item_key!r}"
    if inspect.isawaitable(returned):
        raise TypeError(f"{where}: it returned an awaitable ({type(returned).__name__}); make the function async")
    value = state_type.value_of(returned)
    exactly = Exactly(codec, where)
    return exactly.entry("result", value, exactly.encode("result", value)).value("result")


def collect(before: Entries, into: str, results: Iterable[Any], state_type: StateType[Any], step_id: str) -> Patch:
    """Return the effect of a step that ran for each item: its results, as a list in the order of the items.

    Args:
        before: The entries the step started from.
        into: The entry that the results go to.
        results: What `item_result` answered for each item, in order.
        state_type: The declared type.
        step_id: For errors.

    Raises:
        CodecError: They cannot be encoded.
        StateSchemaError: They are not of the declared type.
    """
    where = f"step {step_id!r}"
    # Each of them has been read back already.
    entry = Entry(Exactly(before.codec, where).encode(into, list(results)), before.codec)
    if before.by_key.get(into) == entry:
        return EMPTY_PATCH
    patch = Patch({into: entry})
    if state_type.fields is not None:
        _require_readable(apply(before, patch), None, state_type, where, before.by_key.keys() - {into})
    return patch


def _entries_left(left: S, returned: object, state_type: StateType[S], where: str) -> tuple[dict[str, Any], S | None]:
    """Return the entries a step leaves, and the state they are of where that is an instance."""
    if returned is None:
        return state_type.to_entries(left), left
    if state_type.is_state(returned):
        state: Any = returned
        return state_type.to_entries(state), state
    if isinstance(returned, Replace):
        if not state_type.is_mapping:
            raise TypeError(f"{where}: Replace is for dict states; return a {state_type.name}")
        return dict(returned.values), None
    if isinstance(returned, Mapping):
        return state_type.with_changes(left, returned), None
    if inspect.isawaitable(returned):
        raise TypeError(f"{where}: it returned an awaitable ({type(returned).__name__}); make the function async")
    whole = "Replace" if state_type.is_mapping else state_type.name
    raise TypeError(
        f"{where}: it returned {type_name(type(returned))}; "
        f"a step returns None, a mapping of entries to change, or a whole state ({whole})"
    )


def _difference(before: Entries, after: Mapping[str, Any], where: str) -> Patch:
    codec, known = before.codec, before.by_key
    exactly = Exactly(codec, where)
    entries: dict[str, Entry] = {}
    for key, value in after.items():
        entry = known.get(key)
        if entry is not None and entry.is_surely(value):
            continue
        if value is DELETE:
            raise TypeError(f"{where}: DELETE is for the mapping that a step returns, not for its copy of the state")
        content = exactly.encode(key, value)
        if entry is not None and (
            entry.content == content
            or (not isinstance(codec, JsonCodec) and exactly.is_read_from(key, value, entry.content))
        ):
            continue
        entries[key] = exactly.entry(key, value, content)
    removed = known.keys() - after.keys()
    if not entries and not removed:
        return EMPTY_PATCH
    return Patch(entries, frozenset(removed))


def _require_readable(
    entries: Entries, model: S | None, state_type: StateType[S], where: str, unchecked: Container[str] = ()
) -> S:
    """Return the state that the entries are of; raise unless it is the one that the step left."""
    try:
        found = state_type.from_entries(entries.values(), unchecked=unchecked)
    except StateSchemaError as error:
        raise StateSchemaError(f"{where}: {error.message}") from None
    if model is not None and (name := state_type.differing_field(model, found)) is not None:
        path = child_path("$", name)
        raise CodecError(
            f"{where}: {path} does not come back as it was: {state_type.name} hides it from what is stored, or changes "
            "it when it is made",
            path=path,
            type=type_name(type(state_type.value_in(model, name))),
        )
    return found


def _reduced(
    key: str,
    effects: Sequence[tuple[str, Entry | None]],
    base: Entries,
    reducer: Callable[[Any, Any, Any], Any] | None,
) -> Entry | None:
    steps = tuple(step_id for step_id, _ in effects)
    names = ", ".join(map(repr, steps))
    if reducer is last:
        return effects[-1][1]
    if reducer is None:
        raise StateConflictError(
            f"steps {names} left different values in entry {key!r}: "
            "give it a reducer, or let one step depend on the other",
            entry=key,
            steps=steps,
        )

    def decoded(entry: Entry | None) -> Any:
        if entry is None:
            raise StateConflictError(
                f"of the steps {names} some removed entry {key!r} and some changed it", entry=key, steps=steps
            )
        return entry.value(key)

    value = decoded(effects[0][1])
    for _, entry in effects[1:]:
        right = decoded(entry)
        try:
            value = reducer(base.value(key), value, right)
        except Exception as error:
            raise StateConflictError(
                f"steps {names} left values in entry {key!r} that its reducer does not merge ({type(error).__name__})",
                entry=key,
                steps=steps,
            ) from error
    exactly = Exactly(base.codec, f"the reducer of {key!r}, for the steps {names}")
    return exactly.entry(key, value, exactly.encode(key, value))
