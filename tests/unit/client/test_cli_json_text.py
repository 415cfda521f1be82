"""JSON text of the command line: re-spaced, taken apart and written without changing a value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.cli import json_text
from milepost.cli.json_text import JsonText, Number

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(values, st.booleans(), st.sampled_from([None, 3]))
def test_respacing_keeps_the_value(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    for respaced in (json_text.compact(text), json_text.indented(text), json_text.readable(text)):
        assert json_text.parse(respaced) == json_text.parse(text)


@settings(max_examples=50)
@given(values)
def test_a_document_is_one_line_of_ascii(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    for document in (value, json_text.parse(text), JsonText(text)):
        written = json_text.dumps({"it": document})
        assert written.isascii()
        assert "\n" not in written
        assert json.loads(written) == {"it": json.loads(text)}


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=5), values, max_size=5), st.sampled_from([None, 2]))
def test_an_object_is_taken_apart_into_its_members(value: dict[str, Any], indent: int | None) -> None:
    members = json_text.split_object(json.dumps(value, indent=indent))
    assert {key: json.loads(text) for key, text in members.items()} == value


def test_numbers_stay_as_they_are_written() -> None:
    text = '{"a": 1.10, "b": 1e400, "c": 123456789012345678901234567890, "d": -0.0}'
    assert json_text.compact(text) == '{"a":1.10,"b":1e400,"c":123456789012345678901234567890,"d":-0.0}'
    assert json_text.split_object(text)["a"] == "1.10"
    assert json_text.dumps(json_text.parse(text)) == text


def test_a_number_is_no_text_and_no_other_spelling_of_it() -> None:
    assert json_text.parse("1") == Number("1")
    assert json_text.parse("1") != json_text.parse('"1"')
    assert json_text.parse("1") != json_text.parse("1.0")
    assert json_text.parse("1") != json_text.parse("true")


def test_indented_text_has_a_member_a_line_and_no_line_for_nothing() -> None:
    assert json_text.indented('{"a":[1,{}],"b":[]}') == '{\n  "a": [\n    1,\n    {}\n  ],\n  "b": []\n}'


def test_a_short_value_stays_on_one_line() -> None:
    assert json_text.readable('{"a":[1,2]}') == '{"a": [1, 2]}'
    assert "\n" in json_text.readable(json.dumps(["word"] * 30))


def test_a_value_as_deep_as_the_store_allows_is_read_and_written() -> None:
    text = "[" * 512 + "]" * 512
    assert json_text.dumps(json_text.parse(text)) == text
    assert json_text.parse(json_text.indented(text)) == json_text.parse(text)


@pytest.mark.parametrize("text", ["", "[1", "NaN", "[Infinity]", "foo", "{} {}"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        json_text.parse(text)


def test_a_nesting_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="too deep"):
        json_text.parse("[" * 100_000)


@pytest.mark.parametrize("text, why", [("[1]", "not a JSON object"), ('{"a":1,"a":2}', "'a' twice")])
def test_a_state_that_is_no_object_or_says_a_thing_twice_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        json_text.split_object(text)
