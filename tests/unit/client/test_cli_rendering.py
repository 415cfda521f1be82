"""Text for people: nothing in it drives a terminal, and columns stand below each other."""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from milepost.cli.rendering import Column, Output, age, hexadecimal, json_value, printable, shortened, size

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.text(st.characters(codec=None)))
def test_printable_text_has_nothing_a_terminal_would_obey(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b[31m\x07", "\\u001b[31m\\u0007"),
        ("a\nb", "a\\u000ab"),
        ("\x9b2J", "\\u009b2J"),
        ("\u202eevil", "\\u202eevil"),
        ("\U000e0041", "\\udb40\\udc41"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_could_drive_a_terminal_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_a_shown_json_value_is_still_that_value(text: str) -> None:
    assert json.loads(json_value(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    "seconds, shown",
    [(-5, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (86_400 * 400, "400d")],
)
def test_an_age_has_one_unit(seconds: int, shown: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == shown


@pytest.mark.parametrize(
    "count_bytes, shown",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024**2 - 1, "1.0 MiB"), (5 * 1024**3, "5.0 GiB")],
)
def test_a_size_has_the_nearest_unit(count_bytes: int, shown: str) -> None:
    assert size(count_bytes) == shown


def test_only_the_beginning_of_opaque_bytes_is_shown() -> None:
    assert hexadecimal(b"\x80\x04") == "80 04"
    assert hexadecimal(bytes(33)).endswith("00 …")


@given(st.lists(st.text("01-a", max_size=40), max_size=10))
def test_a_shortened_id_fits_no_other_one(ids: list[str]) -> None:
    short = shortened(ids)
    for one in ids:
        prefix = short[one].removesuffix("…")
        assert one.startswith(prefix)
        if short[one] != one:
            assert [other for other in set(ids) if other.startswith(prefix)] == [one]


def test_markup_in_data_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output(color=True).table([Column("id"), Column("n", is_number=True)], [("[red]x", "1"), (Text("[/]"), "22")])
    assert capsys.readouterr().out == "id       n\n[red]x   1\n[/]     22\n"


def test_a_long_table_keeps_its_columns_and_has_one_header(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ((str(number), "x") for number in range(1000))
    assert Output(color=False).table([Column("n", is_number=True), Column("what")], rows) == 1000
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1001
    assert (lines[0], lines[1], lines[1000]) == ("  n  what", "  0  x", "999  x")


def test_an_empty_table_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert Output(color=False).table([Column("n")], []) == 0
    assert capsys.readouterr().out == ""


def test_a_narrow_terminal_takes_from_the_columns_that_give_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    Output(color=True).table([Column("id"), Column("step", shrinks=True)], [("i" * 20, "s" * 30)])
    assert capsys.readouterr().out.splitlines()[1] == "i" * 20 + "  " + "s" * 17 + "…"


@pytest.mark.parametrize(
    "width, header",
    [
        (80, "id    size  records  age"),
        (23, "id    size  age"),
        (16, "id    size  age"),
        (14, "id    age"),
        (5, "id    age"),
    ],
)
def test_a_narrow_terminal_goes_without_the_optional_columns_from_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, header: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    optional = [Column("size", is_number=True, is_optional=True), Column("records", is_number=True, is_optional=True)]
    Output(color=False).table(
        [Column("id"), *optional, Column("age", is_number=True)],
        [("w-17", "7 B", "3", "9s"), ("w-18", "8 B", "4", "8s")],
    )
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert shown[0] == header
    assert len({len(line) for line in shown}) == 1


def test_an_optional_column_is_left_out_for_people_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "5")
    Output(color=False).table([Column("id"), Column("size", is_optional=True)], [("w-17", "7 B")])
    assert capsys.readouterr().out == "id    size\nw-17  7 B\n"
