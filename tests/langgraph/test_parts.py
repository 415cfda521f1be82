"""The parts of the adapter that talk to nobody."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from milepost import CodecError, InvalidRequestError
from milepost.adapters.langgraph import MilepostSaver, encoding
from milepost.adapters.langgraph.addresses import Address
from milepost.adapters.langgraph.known import CHECKPOINTS_PER_SCOPE_MAX, KnownChannel, KnownCheckpoint, KnownCheckpoints
from milepost.adapters.langgraph.put import Fence, PutDraft
from milepost.adapters.langgraph.sizing import LARGE_BYTES, PARTS_MAX, is_large
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1.checkpoint_pb2 import COMPRESSION_UNSPECIFIED
from tests.support.langgraph_checkpoints import config_of, make_checkpoint, metadata_of


def known(checkpoint_id: str, **channels: str) -> KnownCheckpoint:
    found = {
        name: KnownChannel(version, encoding.Encoded("bytes", version.encode(), COMPRESSION_UNSPECIFIED, 0).digest)
        for name, version in channels.items()
    }
    return KnownCheckpoint(checkpoint_id, b"d" * 32, found, {}, 1, "")


def draft(
    base: KnownCheckpoint | None, values: dict[str, bytes], versions: dict[str, Any], **new: Any
) -> pb.SaveRequest:
    checkpoint = make_checkpoint(values, versions, checkpoint_id="c2")
    made = PutDraft(
        Address.of(config_of("t", "", "c1")),
        config_of("t", "", "c1"),
        checkpoint,
        metadata_of(),
        new,
        namespace="default",
        serde=JsonPlusSerializer(),
        compress_over_bytes=None,
        base=base,
        fence=Fence(),
    )
    return made.request


def test_a_put_sends_what_its_base_is_not_proven_to_hold() -> None:
    base = known("c1", a="1.5", b="1.5", gone="1.5")
    request = draft(base, {"a": b"1.5", "b": b"new", "c": b"x"}, {"a": "1.5", "b": "2.7", "c": "1.1"}, b="2.7")
    assert set(request.state) == {"b", "c", "__checkpoint__"}
    assert (request.base_checkpoint_id, request.base_digest) == ("c1", b"d" * 32)
    assert list(request.removed_keys) == ["gone"]
    assert (request.parent_id, request.on_conflict) == ("c1", pb.ON_CONFLICT_REPLACE)


@pytest.mark.parametrize(
    "base, values, versions, new",
    [
        (None, {"a": b"1.5"}, {"a": "1.5"}, {}),
        (known("c1"), {"a": b"1.5"}, {"a": "1.5"}, {}),
        (known("c1", a="1.5"), {"a": b"other"}, {"a": "1.6"}, {}),
        (known("c1", a="1.5"), {"a": b"other"}, {"a": "1.5"}, {"a": "1.5"}),
        (known("c1", a="1"), {"a": b"other"}, {"a": "1"}, {}),
        (known("c2", a="1.5"), {"a": b"1.5"}, {"a": "1.5"}, {}),
    ],
    ids=["no base", "not in the base", "another version", "told as new", "a number for a version", "itself"],
)
def test_a_put_without_proof_is_in_full(
    base: KnownCheckpoint | None, values: dict[str, bytes], versions: dict[str, str], new: dict[str, str]
) -> None:
    request = draft(base, values, versions, **new)
    assert set(request.state) == {"a", "__checkpoint__"}
    assert not request.HasField("base_checkpoint_id")
    assert not request.removed_keys


def test_equal_bytes_are_proof_whatever_the_version_says() -> None:
    request = draft(known("c1", a="same"), {"a": b"same"}, {"a": 7}, a=7)
    assert set(request.state) == {"__checkpoint__"}


def test_what_is_known_is_bounded_and_the_newest_of_a_scope_stands_in() -> None:
    memory = KnownCheckpoints(channels_max=20)
    for number in range(10):
        memory.remember(("t", ""), known(f"c{number}", a="1.1"))
    assert memory.exactly(("t", ""), "c0") is None
    assert memory.exactly(("t", ""), "c9") is not None
    stand_in = memory.recall(("t", ""), "c0")
    assert stand_in is not None
    assert stand_in.checkpoint_id == "c9"
    assert sum(memory.exactly(("t", ""), f"c{n}") is not None for n in range(10)) == CHECKPOINTS_PER_SCOPE_MAX
    for number in range(30):
        memory.remember((f"u{number}", ""), known("c", a="1.1"))
    assert memory.recall(("t", ""), "c9") is None
    assert sum(memory.recall((f"u{n}", ""), "c") is not None for n in range(30)) == 10
    memory.remember(("big", ""), known("c", **{f"k{n}": "1.1" for n in range(30)}))
    assert memory.recall(("big", ""), "c") is None
    memory.remember(("t", ""), known("c"))
    memory.forget(("t", ""), "c")
    assert memory.recall(("t", ""), "c") is None


def test_the_names_of_many_nodes_fit_into_a_step() -> None:
    assert encoding.step_name(["b", "a"]) == "a, b"
    many = encoding.step_name(f"node-{number:03}" for number in range(100))
    assert many.startswith("node-000, node-001, ")
    assert many.endswith(" more")
    assert len(many.encode()) <= 256
    assert encoding.step_name(["ü" * 200, "x" * 300]) == "2 nodes"


def test_versions_rise_and_are_given_once() -> None:
    saver = MilepostSaver()
    versions = [saver.get_next_version(None, None)]
    for _ in range(11):
        versions.append(saver.get_next_version(versions[-1], None))
    assert versions == sorted(versions)
    assert len({saver.get_next_version(versions[0], None) for _ in range(100)}) == 100
    # As other savers gave them: a thread may come from one of those.
    assert saver.get_next_version(7, None) > saver.get_next_version("6", None)  # type: ignore[arg-type]
    assert saver.get_next_version(f"{3:032}.0.5123", None).startswith(f"{4:032}.")


def test_a_saver_is_copied_and_not_pickled() -> None:
    saver = MilepostSaver("127.0.0.1:1", namespace="n")
    assert repr(copy.copy(saver)) == repr(saver) == "MilepostSaver('127.0.0.1:1', namespace='n')"
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(saver)


def test_a_filter_that_json_has_no_word_for_is_refused() -> None:
    with pytest.raises(CodecError):
        encoding.filter_to_json({"x": {1, 2}})


def test_half_a_surrogate_pair_is_no_json_and_no_id() -> None:
    """Metadata keep it in the header alone, which the serializer writes; an id with it is refused by its field."""
    assert encoding.metadata_to_json({"source": "loop", "said": "a\ud800"}) == ('{"source":"loop"}', False)
    with pytest.raises(CodecError):
        encoding.filter_to_json({"said": "a\ud800"})
    saver = MilepostSaver("127.0.0.1:1")
    for call in (
        lambda: saver.get_tuple(config_of("t\ud800")),
        lambda: saver.put(config_of("t\ud800"), make_checkpoint({}, {}), metadata_of(), {}),
        lambda: saver.put_writes(config_of("t\ud800", "", "c"), [("a", 1)], "task"),
        lambda: [*saver.list(config_of("t\ud800"))],
        lambda: saver.delete_thread("t\ud800"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            call()
        assert caught.value.field == "workflow_id"


def test_half_a_surrogate_pair_in_a_channel_or_task_is_told_by_its_name() -> None:
    saver = MilepostSaver("127.0.0.1:1")
    config = config_of("t", "", "c")
    for field, call in (
        ("channel", lambda: saver.put(config, make_checkpoint({"a\ud800": 1}, checkpoint_id="c"), metadata_of(), {})),
        ("channel", lambda: saver.put_writes(config, [("a\ud800", 1)], "task")),
        ("task_id", lambda: saver.put_writes(config, [("a", 1)], "a\ud800")),
        ("task_path", lambda: saver.put_writes(config, [("a", 1)], "task", "a\ud800")),
    ):
        with pytest.raises(InvalidRequestError, match=r"'a\\ud800' has a lone surrogate") as caught:
            call()
        assert (caught.value.field, caught.value.workflow_id, caught.value.checkpoint_id) == (field, "t", "c")


def test_nothing_of_langgraph_is_imported_unless_the_adapter_is() -> None:
    program = "import sys, milepost, milepost.adapters; print([m for m in sys.modules if m.startswith('lang')])"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n"


def test_a_missing_extra_is_told_with_its_name() -> None:
    program = "import sys; sys.modules['langchain_core'] = None; import milepost.adapters.langgraph"
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert 'pip install "milepost[langgraph]"' in result.stderr.splitlines()[-1]


class Holder:
    def __init__(self, text: str) -> None:
        self.text = text


@pytest.mark.parametrize(
    "value, large",
    [
        ("x" * LARGE_BYTES, False),
        ("x" * (LARGE_BYTES + 1), True),
        ({"a": [b"x" * 40_000, ("y" * 40_000,)]}, True),
        ([Holder("x" * 40_000), Holder("y" * 40_000)], True),
        (list(range(PARTS_MAX + 1)), True),
        ([{"n": n} for n in range(100)], False),
        (memoryview(bytes(LARGE_BYTES + 1)), True),
        (None, False),
    ],
)
def test_what_is_large_is_told_by_a_short_look(value: object, large: bool) -> None:
    assert is_large([value]) is large


def test_a_value_that_holds_itself_is_looked_at_for_a_short_time_only() -> None:
    value: list[Any] = []
    value.append(value)
    assert is_large([value])
