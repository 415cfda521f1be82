"""The error tree: one table, every reason of the wire in it, and nothing lost on the way to another process."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

from milepost import errors
from milepost.errors import ERROR_CLASSES, Code, MilepostError, error_class
from milepost.v1 import error_reason_pb2
from tests.support.documented import metadata_keys

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, MilepostError)]


def test_every_reason_of_the_wire_has_a_class() -> None:
    named = {reason for _, reason in ERROR_CLASSES if reason}
    declared = set(error_reason_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    assert named == declared


def test_a_reason_is_listed_under_the_code_it_comes_with() -> None:
    codes: dict[str, set[int]] = {}
    for code, reason in ERROR_CLASSES:
        codes.setdefault(reason, set()).add(code)
    assert {reason for reason, found in codes.items() if reason and len(found) > 1} == set()


@pytest.mark.parametrize(
    "code, kind",
    [
        (Code.NOT_FOUND, errors.NotFoundError),
        (Code.ABORTED, errors.ConflictError),
        (Code.INVALID_ARGUMENT, errors.InvalidRequestError),
        (Code.RESOURCE_EXHAUSTED, errors.CapacityError),
        (Code.UNAVAILABLE, errors.UnavailableError),
        (Code.UNKNOWN, MilepostError),
        (Code.UNIMPLEMENTED, MilepostError),
        (77, MilepostError),
    ],
)
def test_a_reason_of_tomorrow_is_the_base_class_of_its_code(code: int, kind: type[MilepostError]) -> None:
    assert error_class(code, "A_REASON_OF_TOMORROW") is kind


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_concrete_name_ends_in_error(kind: type[MilepostError]) -> None:
    assert kind.__name__.endswith("Error")
    assert kind.__name__ in errors.__all__


def made(kind: type[MilepostError]) -> MilepostError:
    if kind is errors.ClientForkedError:
        return errors.ClientForkedError("forked", owner_pid=1, pid=2)
    fields: dict[str, Any] = {"reason": "R", "namespace": "n", "workflow_id": "w", "scope": "s", "checkpoint_id": "c"}
    if kind is errors.CodecError:
        return errors.CodecError("what happened", path="$.x", type="set", **fields)
    return kind("what happened", metadata={"allowed": "5", "found": "x", "expected_head": "h"}, **fields)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_an_error_survives_pickle_and_copy(kind: type[MilepostError]) -> None:
    error = made(kind)
    error.add_note("seen in production")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert twin.args == error.args
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_built_in_handlers_catch_what_they_say() -> None:
    assert issubclass(errors.WorkflowNotFoundError, LookupError)
    assert issubclass(errors.LimitExceededError, ValueError)
    assert issubclass(errors.UnavailableError, ConnectionError)
    assert issubclass(errors.DeadlineError, TimeoutError)
    assert not issubclass(errors.UnavailableError, LookupError)


def test_fields_are_read_from_metadata() -> None:
    error = errors.LimitExceededError("…", metadata={"limit": "entries", "allowed": "10", "found": "many"})
    assert (error.limit, error.allowed, error.found, error.unit) == ("entries", 10, None, "")


UNKNOWN_TO_THE_SERVER = {("STORE_FULL", "found"), ("WATCH_TOO_SLOW", "found"), ("WATCH_TOO_SLOW", "unit")}


@pytest.mark.parametrize("reason", metadata_keys())
def test_whatever_an_error_can_be_asked_for_comes_with_its_reason(reason: str) -> None:
    (kind,) = (kind for (_, named), kind in ERROR_CLASSES.items() if named == reason)
    error = kind("what happened", reason=reason, metadata=dict.fromkeys(metadata_keys()[reason], "7"))
    asked = {
        name
        for each in kind.__mro__
        if issubclass(each, MilepostError)
        for name, value in vars(each).items()
        if isinstance(value, property) and (reason, name) not in UNKNOWN_TO_THE_SERVER
    }
    assert [name for name in sorted(asked) if not getattr(error, name)] == []


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {
        word
        for line in (errors.__doc__ or "").splitlines()
        if "─" in line or line.strip() == "MilepostError"
        for word in line.replace("(", " ").replace(")", " ").split()
        if word.endswith("Error")
    }
    builtin = {"LookupError", "ValueError", "ConnectionError", "TimeoutError", "RuntimeError"}
    assert drawn - builtin == {kind.__name__ for kind in CLASSES}
