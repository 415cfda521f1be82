"""State encoding: entries, digests, increments, compression."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost import _compression
from milepost._state import (
    DigestMemory,
    EncodedValue,
    decode_state,
    decode_value,
    encode_state,
    encode_value,
    plan_increment,
)
from milepost.codecs import BYTES, JSON, MSGPACK, Codec
from milepost.errors import CodecError, InvalidRequestError
from milepost.v1 import checkpoint_pb2 as pb

LONG = "the same words again and again " * 200


def test_values_are_readable_json_without_a_codec_name() -> None:
    values = encode_state({"a": {"x": [1]}, "b": (1,)}).values
    assert values["a"] == pb.Value(json='{"x":[1]}')
    assert values["b"] == pb.Value(json='{"$milepost":["tuple",[1]]}')


def test_other_codecs_are_named() -> None:
    assert encode_state({"a": 1}, MSGPACK).values["a"] == pb.Value(data=b"\x01", codec="msgpack")
    assert encode_state({"a": b"x"}, BYTES).values["a"] == pb.Value(data=b"x", codec="bytes")


@settings(derandomize=True, max_examples=100)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda key: "\0" not in key),
        st.one_of(st.integers(), st.text(), st.binary(), st.lists(st.floats(allow_nan=False))),
    ),
    st.sampled_from([JSON, MSGPACK]),
    st.sampled_from([None, 0, 10]),
)
def test_any_state_comes_back(state: dict[str, Any], codec: Codec, over: int | None) -> None:
    encoded = encode_state(state, codec, compress_over_bytes=over)
    assert decode_state(encoded.values, codec) == state


def test_large_values_travel_compressed_and_state_their_size() -> None:
    value = encode_state({"a": LONG}).values["a"]
    assert (value.codec, value.compression) == ("json", pb.COMPRESSION_ZSTD)
    assert len(value.data) < len(LONG) / 10
    assert zstandard.frame_content_size(value.data) == len(LONG) + 2
    assert decode_value(value) == LONG


def test_small_values_and_those_that_do_not_shrink_stay_as_they_are() -> None:
    noise = bytes(range(256)) * 8
    scrambled = bytes((byte * 167 + position * position * 31) % 256 for position, byte in enumerate(noise))
    assert encode_state({"a": "x" * 1_000}).values["a"].WhichOneof("content") == "json"
    assert _compression.compress(b"x" * 1_024, 1_024) is None
    assert _compression.compress(b"x" * 1_025, 1_024) is not None
    assert _compression.compress(zstandard.compress(scrambled * 4), 0) is None
    assert _compression.compress(b"x" * 5_000, None) is None


def test_equal_content_makes_equal_frames_in_every_thread() -> None:
    frames: list[bytes | None] = [_compression.compress(LONG.encode(), 0)]
    threads = [
        threading.Thread(target=lambda: frames.append(_compression.compress(LONG.encode(), 0))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(frames)) == 1


def test_digests_do_not_depend_on_compression() -> None:
    plain = encode_state({"a": LONG}, compress_over_bytes=None)
    packed = encode_state({"a": LONG}, compress_over_bytes=0)
    assert plain.digests == packed.digests
    assert plain.values != packed.values


def test_digests_tell_types_and_codecs_apart() -> None:
    digests = {encode_state({"a": value}).digests["a"] for value in (1, 1.0, True, "1", (1,), [1], b"1")}
    digests.add(encode_state({"a": 1}, MSGPACK).digests["a"])
    digests.add(encode_state({"a": b"1"}, BYTES).digests["a"])
    assert len(digests) == 9
    assert {len(digest) for digest in digests} == {16}


def test_an_increment_has_what_changed_and_what_went() -> None:
    base = encode_state({"same": 1, "changed": 1, "z": 1, "gone": 1})
    encoded = encode_state({"same": 1, "changed": 2, "new": LONG})
    increment = plan_increment(encoded, base.digests)
    assert increment is not None
    assert increment.values.keys() == {"changed", "new"}
    assert increment.removed_keys == ("gone", "z")


def test_an_unchanged_state_is_an_empty_increment() -> None:
    encoded = encode_state({"a": 1})
    increment = plan_increment(encoded, encoded.digests)
    assert increment is not None
    assert (increment.values, increment.removed_keys) == ({}, ())


def test_nothing_in_common_means_a_full_save() -> None:
    encoded = encode_state({"a": 1, "b": 2})
    assert plan_increment(encoded, None) is None
    assert plan_increment(encoded, {}) is None
    assert plan_increment(encoded, encode_state({"a": 2, "c": 1}).digests) is None
    assert plan_increment(encode_state({}), encoded.digests) is None


def test_only_what_is_sent_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    compress = _compression.compress

    def counting(content: bytes, over_bytes: int | None) -> bytes | None:
        sizes.append(len(content))
        return compress(content, over_bytes)

    monkeypatch.setattr(_compression, "compress", counting)
    base = encode_state({"a": LONG, "b": 1})
    encoded = encode_state({"a": LONG, "b": 2})
    plan_increment(encoded, base.digests)
    assert sizes == [1]
    assert encoded.values == encoded.values
    assert len(sizes) == 2


def test_the_size_is_that_of_keys_and_encodings() -> None:
    assert encode_state({"ä": "x", "b": None}).size_bytes == 2 + 3 + 1 + 4


@pytest.mark.parametrize("over", [None, 100])
@pytest.mark.parametrize("codec", [JSON, MSGPACK])
def test_a_value_that_is_encoded_already_is_saved_like_any_other(codec: Codec, over: int | None) -> None:
    state = {"a": [1, {"x": LONG}], "b": "text"}
    plain = encode_state(state, codec, compress_over_bytes=over)
    already = {key: EncodedValue(codec.encode(value), codec.name) for key, value in state.items()}
    encoded = encode_state(already, codec, compress_over_bytes=over)
    assert (encoded.values, encoded.digests, encoded.size_bytes) == (plain.values, plain.digests, plain.size_bytes)


def test_a_store_that_compresses_nothing_holds_an_encoded_value_once() -> None:
    """However many checkpoints of a long run it is in."""
    kept = EncodedValue(JSON.encode([LONG]), "json")
    first, second = (
        encode_state({"a": kept, "number": number}, compress_over_bytes=None).values for number in range(2)
    )
    assert first["a"] is second["a"]
    assert decode_state(second) == {"a": [LONG], "number": 1}


@pytest.mark.parametrize(
    "key,told",
    [
        ("", "1 to 1024 bytes"),
        ("a\0b", "NUL"),
        ("k" * 1_025, "1025 bytes"),
        ("ä" * 513, "1026 bytes"),
        ("\ud800", "surrogate"),
        (1, "type int"),
        (b"a", "type bytes"),
    ],
)
def test_malformed_keys_are_refused(key: Any, told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told) as caught:
        encode_state({"ok": 1, key: 2})
    assert str(caught.value).isprintable()


def test_paths_begin_with_the_entry() -> None:
    with pytest.raises(CodecError) as caught:
        encode_state({"a b": [object()]})
    assert caught.value.path == '$["a b"][0]'
    with pytest.raises(CodecError) as caught:
        decode_state({"order": pb.Value(json="[")})
    assert caught.value.path == "$.order"


def test_json_is_read_whatever_codec_is_given() -> None:
    for codec in (JSON, MSGPACK, BYTES):
        assert decode_value(pb.Value(json=" [1] "), codec) == [1]
        assert decode_value(pb.Value(data=b"[1]", codec="json"), codec) == [1]
        assert decode_value(encode_value(LONG), codec) == LONG


def test_the_value_of_an_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(CodecError, match=r"'pickle'.*'json'") as caught:
        decode_value(pb.Value(data=b"x", codec="pickle"), path="$.a")
    assert (caught.value.path, caught.value.type) == ("$.a", "pickle")


class Wordy:
    name = "wordy"

    def encode(self, value: object, path: str = "$") -> str:
        return "text"

    def decode(self, content: str | bytes, path: str = "$") -> Any:
        return content


def test_text_is_for_the_json_codec_alone() -> None:
    with pytest.raises(CodecError, match="wordy"):
        encode_state({"a": 1}, Wordy())


def frame(content: bytes, **options: Any) -> pb.Value:
    data = zstandard.ZstdCompressor(**options).compress(content)
    return pb.Value(data=data, codec="json", compression=pb.COMPRESSION_ZSTD)


@pytest.mark.parametrize(
    "value,told",
    [
        (pb.Value(), "no content"),
        (pb.Value(data=b"x", codec="json", compression=7), "way this client does not know"),  # type: ignore[arg-type]
        (pb.Value(data=b"", codec="json", compression=pb.COMPRESSION_ZSTD), "damaged"),
        (pb.Value(data=b"garbage", codec="json", compression=pb.COMPRESSION_ZSTD), "damaged"),
        (frame(b"1" * 99, write_content_size=False), "does not state"),
    ],
)
def test_damaged_values_are_refused(value: pb.Value, told: str) -> None:
    with pytest.raises(CodecError, match=told):
        decode_value(value)


def test_cut_and_lengthened_frames_are_refused() -> None:
    whole = frame(LONG.encode()).data
    for data in (whole[:-3], whole + b"x", whole + whole):
        with pytest.raises(CodecError):
            decode_value(pb.Value(data=data, codec="json", compression=pb.COMPRESSION_ZSTD))


def test_a_frame_is_not_begun_when_it_states_too_much() -> None:
    size = _compression.DECOMPRESSED_BYTES_MAX + 1
    # Magic, a descriptor of a single segment with an 8-byte size, the size: no content at all follows.
    bomb = b"\x28\xb5\x2f\xfd" + b"\xe0" + size.to_bytes(8, "little")
    with pytest.raises(CodecError, match=str(size)):
        decode_value(pb.Value(data=bomb, codec="json", compression=pb.COMPRESSION_ZSTD))


def test_without_zstandard_nothing_is_compressed_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    value = encode_value(LONG)
    monkeypatch.setattr(_compression, "_IS_AVAILABLE", False)
    assert _compression.accepted() == ()
    assert encode_value(LONG).WhichOneof("content") == "json"
    with pytest.raises(CodecError, match=r"milepost\[zstd\]"):
        decode_value(value)


def test_digest_memory_forgets_the_oldest_use_first() -> None:
    memory = DigestMemory(digests_max=9)
    for name in ("c1", "c2", "c3"):
        memory.remember("n", "w", "", name, digests={"a": name.encode(), "b": b""}, content_digest=b"digest")
    assert memory.recall("n", "w", "", "c1") == ({"a": b"c1", "b": b""}, b"digest")
    memory.remember("n", "w", "", "c4", digests={"a": b"c4"}, content_digest=b"digest")
    assert memory.recall("n", "w", "", "c2") is None
    assert memory.recall("n", "w", "", "c1") is not None
    memory.forget("n", "w", "", "c1")
    assert memory.recall("n", "w", "", "c1") is None
    memory.forget("n", "w", "", "c1")


def test_digest_memory_is_bounded_by_entries() -> None:
    memory = DigestMemory(digests_max=100)
    for number in range(1_000):
        memory.remember("n", "w", "", f"c{number}", digests={}, content_digest=b"digest")
    assert "checkpoints=100" in repr(memory)
    memory.remember(
        "n", "w", "", "large", digests={str(number): b"" for number in range(100)}, content_digest=b"digest"
    )
    assert memory.recall("n", "w", "", "large") is None
    assert memory.recall("n", "w", "", "c999") == ({}, b"digest")


def test_digest_memory_keeps_keys_apart_and_copies() -> None:
    memory = DigestMemory()
    digests = {"a": b"1"}
    memory.remember("n", "w", "s", "c", digests=digests, content_digest=b"digest")
    digests["a"] = b"2"
    assert memory.recall("n", "w", "s", "c") == ({"a": b"1"}, b"digest")
    for other in (("m", "w", "s", "c"), ("n", "v", "s", "c"), ("n", "w", "", "c"), ("n", "w", "s", "d")):
        assert memory.recall(*other) is None


def test_no_repr_shows_a_value() -> None:
    encoded = encode_state({"a": "canary-7351", "b": 1})
    increment = plan_increment(encoded, encode_state({"b": 1}).digests)
    memory = DigestMemory()
    memory.remember("n", "w", "", "c", digests=encoded.digests, content_digest=b"digest")
    for shown in (repr(encoded), repr(increment), repr(memory)):
        assert "canary" not in shown
