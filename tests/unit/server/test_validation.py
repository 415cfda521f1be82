"""Checks of requests: each names the field, the rule or the limit, and none can be made to hang or recurse."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from milepost_server.errors import InvalidFieldError, LimitExceededError
from milepost_server.limits import DEFAULT_LIMITS, KIB, MIB
from milepost_server.model import Compression, Record, Value, ValueKind
from milepost_server.validation import (
    check_json,
    check_labels,
    check_metadata,
    check_name,
    check_records,
    check_steps,
    check_text,
    check_value,
    check_values,
    json_depth,
    page_size,
)

LIMITS = DEFAULT_LIMITS


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def zstd(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)  # type: ignore[arg-type]


def data(payload: bytes, codec: str = "", compression: int = 0) -> Value:
    return Value(ValueKind.DATA, payload, codec, compression)


# Texts.


def test_a_text_is_measured_in_bytes_of_utf8() -> None:
    check_text("f", "é" * 128, limit="l", bytes_max=256)
    with pytest.raises(LimitExceededError) as refused:
        check_text("f", "é" * 129, limit="l", bytes_max=256)
    assert refused.value.metadata == {"field": "f", "limit": "l", "allowed": "256", "found": "258", "unit": "bytes"}


@pytest.mark.parametrize("text", ["\0", "a\0b"])
def test_nul_is_refused(text: str) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        check_text("f", text, limit="l", bytes_max=256)
    assert refused.value.field == "f"


def test_a_name_must_not_be_empty() -> None:
    with pytest.raises(InvalidFieldError, match="1 to 9 bytes"):
        check_name("f", "", limit="l", bytes_max=9)


@pytest.mark.parametrize("asked,meant", [(0, 50), (1, 1), (1_000, 1_000), (2_000_000_000, 1_000)])
def test_a_page_size_is_coerced(asked: int, meant: int) -> None:
    assert page_size("page_size", asked, LIMITS) == meant


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidFieldError):
        page_size("page_size", -1, LIMITS)


# JSON.


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1,]",
        '{"a":1,}',
        "NaN",
        "[Infinity]",
        "-Infinity",
        "01",
        "'a'",
        '"\t"',
        '"\\x"',
        "tru",
        "1 2",
        "\ufeff1",
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        check_json("f.json", text.encode(), limit="l", depth_max=512)
    assert refused.value.reason == "INVALID_FIELD"
    assert refused.value.field == "f.json"


@pytest.mark.parametrize(
    "text", ["1", " null ", '"\\u00e9"', "[]", '{"a":{"b":[1.5e300,-0]}}', '{"a":1,"a":2}', "1e999"]
)
def test_json_is_accepted(text: str) -> None:
    check_json("f", text.encode(), limit="l", depth_max=512)


def test_depth_is_counted_exactly_and_no_bound_of_the_interpreter_decides() -> None:
    check_json("f", nested(512), limit="json_depth_max", depth_max=512)
    for depth in (513, sys.getrecursionlimit() * 3, 1_000_000):
        with pytest.raises(LimitExceededError) as refused:
            check_json("f", nested(depth), limit="json_depth_max", depth_max=512)
        assert refused.value.metadata["found"] == str(depth)


def test_many_brackets_side_by_side_are_not_deep() -> None:
    check_json("f", b"[" + b"[],{}," * 20_000 + b"0]", limit="l", depth_max=32)


def test_brackets_in_strings_do_not_count() -> None:
    text = json.dumps(["[" * 5_000, '"[{\\' * 100]).encode()
    assert json_depth(text) == 1
    check_json("f", text, limit="l", depth_max=32)


@pytest.mark.parametrize("text", [b'"[[[', b'["\\', b"]]]]" * 1_000, b"[}" * 1_000, b'"' * 999_999])
def test_malformed_brackets_are_refused_as_json(text: bytes) -> None:
    with pytest.raises(InvalidFieldError):
        check_json("f", text, limit="l", depth_max=32)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('[]{}\\"a,:é'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}\\"a'), inner, max_size=3),
    max_leaves=30,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_any_json_is_accepted_with_its_depth(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert json_depth(text) == depth_of(value)
    check_json("f", text, limit="l", depth_max=depth_of(value))


@given(st.text('[]{}\\",:1 ntrue-.eE', max_size=12))
def test_what_is_accepted_is_what_a_parser_accepts(text: str) -> None:
    try:
        check_json("f", text.encode(), limit="l", depth_max=32)
        is_accepted = True
    except InvalidFieldError:
        is_accepted = False
    try:
        msgspec.json.decode(text)
        is_json = True
    except msgspec.DecodeError:
        is_json = False
    # What a parser refuses for being a number too large to hold is still JSON.
    assert is_accepted == is_json or (is_accepted and "e" in text.lower())


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "null", "  []"])
def test_metadata_must_be_an_object(text: str) -> None:
    with pytest.raises(InvalidFieldError, match="object"):
        check_metadata("metadata", text, LIMITS)


def test_metadata_has_its_own_size_and_depth() -> None:
    check_metadata("metadata", "", LIMITS)
    check_metadata("metadata", ' {"a":' + "[" * 31 + "]" * 31 + "}", LIMITS)
    with pytest.raises(LimitExceededError) as deep:
        check_metadata("metadata", '{"a":' + "[" * 32 + "]" * 32 + "}", LIMITS)
    assert deep.value.metadata["limit"] == "metadata_depth_max"
    with pytest.raises(LimitExceededError) as large:
        check_metadata("metadata", json.dumps({"a": "é" * 33 * KIB}, ensure_ascii=False), LIMITS)
    assert large.value.metadata["limit"] == "metadata_bytes_max"


# Values.


def test_json_goes_with_no_compression_and_no_other_codec() -> None:
    check_value("v", Value(ValueKind.JSON, b"1", "json"), LIMITS)
    with pytest.raises(InvalidFieldError) as codec:
        check_value("v", Value(ValueKind.JSON, b"1", "pickle"), LIMITS)
    assert codec.value.field == "v.codec"
    with pytest.raises(InvalidFieldError) as compression:
        check_value("v", Value(ValueKind.JSON, b"1", "", Compression.ZSTD), LIMITS)
    assert compression.value.field == "v.compression"


@pytest.mark.parametrize("codec", ["a b", "a/b", "é", "a\n", "\0"])
def test_a_codec_has_plain_characters(codec: str) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        check_value("v", data(b"", codec), LIMITS)
    assert refused.value.field == "v.codec"


def test_a_codec_has_a_length() -> None:
    check_value("v", data(b"", "aZ09._+-:" + "x" * 55), LIMITS)
    with pytest.raises(LimitExceededError):
        check_value("v", data(b"", "x" * 65), LIMITS)


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(InvalidFieldError) as refused:
        check_value("v", data(b"", "", 7), LIMITS)
    assert refused.value.field == "v.compression"


@pytest.mark.parametrize("content", [b"", b"x", b"abc" * 100_000])
def test_a_whole_zstd_frame_is_accepted(content: bytes) -> None:
    check_value("v", data(zstd(content), "msgpack", Compression.ZSTD), LIMITS)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no frame",
        zstd(b"x" * 1_000)[:-1],
        zstd(b"x" * 1_000) + b"tail",
        zstd(b"x") + zstd(b"y"),
        zstd(b"") + b"tail",
        zstd(b"x" * 1_000, write_content_size=False),
        b"\x50\x2a\x4d\x18\x00\x00\x00\x00",
        zstd(b"ab" * 999)[:12] + b"\xff" * 20,
    ],
    ids=["empty", "other", "cut", "tail", "two", "empty-tail", "no-size", "skippable", "damaged"],
)
def test_anything_but_one_whole_zstd_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        check_value("v", data(payload, "", Compression.ZSTD), LIMITS)
    assert refused.value.field == "v.data"


def test_a_decompression_bomb_is_refused_by_what_it_states_before_it_is_touched() -> None:
    bomb = zstd(bytes(65 * MIB))
    assert len(bomb) < 10 * KIB
    with pytest.raises(LimitExceededError) as refused:
        check_value("v", data(bomb, "", Compression.ZSTD), LIMITS)
    assert refused.value.metadata["allowed"] == str(64 * MIB)


def test_many_small_bombs_are_refused_together() -> None:
    values = {f"v{number}": data(zstd(bytes(60 * MIB)), "", Compression.ZSTD) for number in range(5)}
    with pytest.raises(LimitExceededError) as refused:
        check_values(values, LIMITS)
    assert refused.value.metadata["limit"] == "value_decompressed_bytes_max"


def test_compressed_json_must_be_json_inside() -> None:
    check_value("v", data(zstd(b'{"a":1}'), "json", Compression.ZSTD), LIMITS)
    for content in (b"{", b'"\xff"'):
        with pytest.raises(InvalidFieldError):
            check_value("v", data(zstd(content), "json", Compression.ZSTD), LIMITS)


# Parts of requests.


def record(task_id: str = "t", index: int = 0, path: str = "", name: str = "") -> Record:
    return Record(task_id, index, path, name, data(b"x"))


def test_two_records_of_one_call_must_not_have_one_key() -> None:
    check_records("records", [record("t", 0), record("t", 1), record("u", 0)], LIMITS)
    with pytest.raises(InvalidFieldError) as refused:
        check_records("records", [record("t", 0), record("t", 0, "p")], LIMITS)
    assert refused.value.field == "records[1]"


def test_texts_of_records_are_checked() -> None:
    with pytest.raises(LimitExceededError) as refused:
        check_records("records", [record(), record("u", 1, "p" * 1_025)], LIMITS)
    assert refused.value.field == "records[1].path"


def test_records_are_bounded_in_number_and_size() -> None:
    with pytest.raises(LimitExceededError) as many:
        check_records("records", [record(index=number) for number in range(10_001)], LIMITS)
    assert many.value.metadata["limit"] == "records_max"
    with pytest.raises(LimitExceededError) as large:
        check_records("records", [Record("t", 0, "", "", data(bytes(16 * MIB)))], LIMITS)
    assert large.value.metadata["limit"] == "records_bytes_max"


@pytest.mark.parametrize(
    "labels", [{str(number): "" for number in range(17)}, {"": "x"}, {"k" * 65: "x"}, {"k": "v" * 257}, {"k": "\0"}]
)
def test_labels_are_bounded(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidFieldError):
        check_labels("labels", labels, LIMITS)


def test_steps_are_bounded() -> None:
    check_steps("s", ["a"] * 100_000, LIMITS)
    for steps in (["a"] * 100_001, [""], ["x" * 257], ["x" * 256] * 17_000):
        with pytest.raises(InvalidFieldError):
            check_steps("s", steps, LIMITS)


@pytest.mark.parametrize("text", ['{"a": 1e400}', '{"a": ' + "9" * 5000 + "}"])
def test_metadata_that_no_filter_could_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidFieldError, match="read"):
        check_metadata("metadata", text, DEFAULT_LIMITS)
