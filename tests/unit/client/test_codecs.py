"""Codecs give back what they were given, or say where they cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pickle
import struct
import sys
import threading
import typing
import uuid
import zoneinfo
from collections import Counter, OrderedDict, UserDict, defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.codecs import (
    BYTES,
    JSON,
    MSGPACK,
    BytesCodec,
    Codec,
    JsonCodec,
    MsgpackCodec,
    PickleCodec,
    check_round_trip,
    child_path,
    require_equal,
)
from milepost.errors import CodecError

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
TAGGED: list[Codec] = [JSON, MSGPACK]


def shown(item: object) -> str:
    """Return a name for a parameter that is the same in every process."""
    text = ascii(item)
    inside = item.values() if isinstance(item, dict) else ()
    is_other_each_time = " at 0x" in text or any(isinstance(each, set | frozenset) for each in (item, *inside))
    return type(item).__name__ if is_other_each_time else text[:30]


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - an alias, on purpose
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: Any = 0


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    id: int
    lines: list[Line] = dataclasses.field(default_factory=list)
    total: Decimal = dataclasses.field(init=False, default=Decimal(0))


class Customer(pydantic.BaseModel):
    name: str = pydantic.Field(alias="customerName")
    since: dt.date | None = None
    extra: Any = None


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", populate_by_name=True)
    a: int = pydantic.Field(1, alias="alpha")


class Names(pydantic.RootModel[list[str]]):
    pass


def registered() -> JsonCodec:
    return JsonCodec([Color, Access, Level, Point, Line, Order, Customer, Open, Names])


# Golden: what is stored now has to be read for ever.

GOLDEN: list[tuple[Any, str]] = [
    (None, "null"),
    (True, "true"),
    (-0, "0"),
    (10**20, "100000000000000000000"),
    (1.0, "1.0"),
    (-0.0, "-0.0"),
    (0.1, "0.1"),
    (1e300, "1e+300"),
    (math.nan, '{"$milepost":["float","nan"]}'),
    (math.inf, '{"$milepost":["float","inf"]}'),
    (-math.inf, '{"$milepost":["float","-inf"]}'),
    (1 << 2_000, '{"$milepost":["int","0x1' + "0" * 500 + '"]}'),
    (-(1 << 2_000), '{"$milepost":["int","-0x1' + "0" * 500 + '"]}'),
    ("", '""'),
    ('ä"\\\n\0\u2028🙂', '"ä\\"\\\\\\n\\u0000\u2028🙂"'),
    ([1, [2, []]], "[1,[2,[]]]"),
    ({"b": 1, "a": {"": None}}, '{"b":1,"a":{"":null}}'),
    ((), '{"$milepost":["tuple",[]]}'),
    ((1, ("a",)), '{"$milepost":["tuple",[1,{"$milepost":["tuple",["a"]]}]]}'),
    ({"b", "a", 1}, '{"$milepost":["set",["a","b",1]]}'),
    (frozenset({(1,)}), '{"$milepost":["frozenset",[{"$milepost":["tuple",[1]]}]]}'),
    (b"\x00\xff", '{"$milepost":["bytes","AP8="]}'),
    (dt.datetime(2024, 5, 1, 10, 0, 0, 5), '{"$milepost":["datetime","2024-05-01T10:00:00.000005"]}'),  # noqa: DTZ001
    (dt.datetime(2024, 5, 1, tzinfo=dt.UTC), '{"$milepost":["datetime","2024-05-01T00:00:00+00:00"]}'),
    (
        dt.datetime(2024, 5, 1, tzinfo=BERLIN),
        '{"$milepost":["datetime","2024-05-01T00:00:00+02:00[Europe/Berlin]"]}',
    ),
    (dt.date(2024, 5, 1), '{"$milepost":["date","2024-05-01"]}'),
    (dt.time(1, 2, 3), '{"$milepost":["time","01:02:03"]}'),
    (dt.datetime(2024, 10, 27, 2, 30, fold=1), '{"$milepost":["datetime","2024-10-27T02:30:00[fold=1]"]}'),  # noqa: DTZ001
    (dt.time(1, tzinfo=BERLIN), '{"$milepost":["time","01:00:00[Europe/Berlin]"]}'),
    (dt.timedelta(days=-1, seconds=2, microseconds=3), '{"$milepost":["timedelta",[-1,2,3]]}'),
    (Decimal("1.10"), '{"$milepost":["decimal","1.10"]}'),
    (Decimal("-Infinity"), '{"$milepost":["decimal","-Infinity"]}'),
    (
        uuid.UUID("12345678-1234-5678-1234-567812345678"),
        '{"$milepost":["uuid","12345678-1234-5678-1234-567812345678"]}',
    ),
    ({"$milepost": 1}, '{"$milepost":["dict",{"$milepost":1}]}'),
    ({"$milepost": ["tuple", []]}, '{"$milepost":["dict",{"$milepost":["tuple",[]]}]}'),
    ({"$milepost": 1, "b": 2}, '{"$milepost":1,"b":2}'),
    (Color.CRIMSON, '{"$milepost":["enum","Color","RED"]}'),
    (Access.READ | Access.WRITE, '{"$milepost":["enum","Access",3]}'),
    (Point(1), '{"$milepost":["object","Point",{"x":1,"y":0}]}'),
    (
        Order(7, [Line("a", Decimal(2))]),
        (
            '{"$milepost":["object","Order",{"id":7,"lines":[{"$milepost":["object","Line",{"sku":"a",'
            '"price":{"$milepost":["decimal","2"]}}]}],"total":{"$milepost":["decimal","0"]}}]}'
        ),
    ),
    (
        Customer(customerName="Ann"),
        '{"$milepost":["object","Customer",{"name":"Ann","since":null,"extra":null}]}',
    ),
    (Names(["a"]), '{"$milepost":["object","Names",{"root":["a"]}]}'),
]


@pytest.mark.parametrize("value,text", GOLDEN, ids=shown)
def test_the_stored_text_never_changes(value: Any, text: str) -> None:
    codec = registered()
    assert codec.encode(value) == text
    require_equal(value, codec.decode(text), codec)
    require_equal(value, codec.decode(text.encode()), codec)


def test_every_golden_text_is_json() -> None:
    for _, text in GOLDEN:
        json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("value", [value for value, _ in GOLDEN], ids=shown)
def test_messagepack_gives_back_the_same(value: Any) -> None:
    check_round_trip(value, MsgpackCodec([Color, Access, Level, Point, Line, Order, Customer, Open, Names]))


# Properties.

ZONES = st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=-3, minutes=-30)), BERLIN])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**80), max_value=2**80),
    st.floats(),
    st.text(),
    st.binary(),
    st.datetimes(timezones=ZONES, allow_imaginary=False),
    st.datetimes(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
)
HASHABLE = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=8,
)
KEYS = st.one_of(st.just("$milepost"), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(st.just("$milepost"), inner, min_size=1),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("codec", TAGGED, ids=repr)
@settings(derandomize=True, max_examples=300)
@given(value=VALUES)
def test_any_value_comes_back_equal_and_of_its_types(codec: Codec, value: Any) -> None:
    encoded = codec.encode(value)
    found = codec.decode(encoded)
    require_equal(value, found, codec)
    assert codec.encode(found) == encoded


@settings(derandomize=True, max_examples=300)
@given(text=st.text(st.sampled_from('{}[]",:$milepostuesdc\\0123 ')) | st.binary())
def test_any_text_is_read_or_refused_with_a_codec_error(text: str | bytes) -> None:
    for codec in (registered(), MSGPACK, PickleCodec()):
        with contextlib.suppress(CodecError):
            codec.decode(text)


TREES = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$milepost", "a"]), inner, max_size=2)
        | st.tuples(
            st.sampled_from(
                [
                    "tuple",
                    "set",
                    "frozenset",
                    "dict",
                    "object",
                    "enum",
                    "bytes",
                    "int",
                    "float",
                    "datetime",
                    "date",
                    "x",
                ]
            ),
            inner,
        ).map(lambda pair: {"$milepost": list(pair)})
    ),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=500)
@given(tree=TREES)
def test_any_tree_of_tags_is_read_or_refused_with_a_codec_error(tree: Any) -> None:
    with contextlib.suppress(CodecError):
        registered().decode(json.dumps(tree))


@settings(derandomize=True, max_examples=200)
@given(
    moment=st.datetimes(
        min_value=dt.datetime(2024, 3, 30),  # noqa: DTZ001
        max_value=dt.datetime(2024, 3, 31, 4),  # noqa: DTZ001
        timezones=st.just(BERLIN),
    )
)
def test_hours_that_do_not_exist_come_back_as_they_were(moment: dt.datetime) -> None:
    found = check_round_trip(moment, JSON)
    assert (found.replace(tzinfo=None), found.utcoffset()) == (moment.replace(tzinfo=None), moment.utcoffset())


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize(
    "local",
    [
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
        dt.datetime(2024, 10, 27, 2, 30),  # noqa: DTZ001
        dt.time(2, 30, tzinfo=BERLIN),
        dt.time(2, 30),
    ],
    ids=["zoned", "naive", "zoned time", "naive time"],
)
def test_the_hour_that_comes_twice_keeps_its_turn(local: dt.datetime | dt.time, fold: int) -> None:
    moment = local.replace(fold=fold)
    found: Any = check_round_trip(moment, JSON)
    assert found.fold == fold
    if isinstance(moment, dt.datetime):
        assert found.timestamp() == moment.timestamp()


def test_a_zone_whose_rules_changed_keeps_the_instant() -> None:
    found = JSON.decode('{"$milepost":["datetime","2024-05-01T00:00:00+05:00[Europe/Berlin]"]}')
    assert found.tzinfo is BERLIN
    assert found.timestamp() == dt.datetime(2024, 4, 30, 19, tzinfo=dt.UTC).timestamp()


def test_other_time_zones_come_back_as_the_same_instant() -> None:
    class Odd(dt.tzinfo):
        def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
            return dt.timedelta(minutes=7)

        def dst(self, _: dt.datetime | None) -> None:
            return None

        def tzname(self, _: dt.datetime | None) -> str:
            return "odd"

    moment = dt.datetime(2024, 1, 1, tzinfo=Odd())
    found = check_round_trip(moment, JSON)
    assert found.utcoffset() == dt.timedelta(minutes=7)


def test_sets_are_stored_the_same_in_every_process() -> None:
    words = [f"w{number}" for number in range(50)]
    backwards = words[::-1]
    assert JSON.encode(set(words)) == JSON.encode(set(backwards))
    assert MSGPACK.encode(frozenset(words)) == MSGPACK.encode(frozenset(backwards))


def test_integers_have_no_largest_and_no_slow_way() -> None:
    large = 7**20_000
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(640)
        for number in (large, -large, (1 << 2_000) - 1, 1 << 63, -(1 << 63) - 1, (1 << 64) - 1):
            for codec in TAGGED:
                check_round_trip(number, codec)
    finally:
        sys.set_int_max_str_digits(limit)


def test_decimals_do_not_depend_on_the_context() -> None:
    with decimal.localcontext(prec=3):
        check_round_trip(Decimal("1.23456789"), JSON)


def test_long_sequences_are_looked_at_all_the_same() -> None:
    numbers: list[Any] = [float(number) for number in range(100)]
    check_round_trip([*numbers, math.nan], JSON)
    check_round_trip([*range(100), 2**3000], JSON)
    check_round_trip([True] * 50, JSON)
    for bad in (["a"] * 50 + ["\ud800"], [*numbers, object()], [1] * 50 + [Level.LOW]):
        with pytest.raises(CodecError) as caught:
            JSON.encode(bad)
        assert caught.value.path == f"$[{len(bad) - 1}]"


# Refusals.


class Text(str):
    __slots__ = ()


REFUSED: list[tuple[Any, str, str]] = [
    (object(), "$", "object"),
    ({"a": [1, 2, 3, {"b": object()}]}, "$.a[3].b", "object"),
    ({"a": (1, {"b c": object()})}, '$.a[1]["b c"]', "object"),
    ({"a": {1: "x"}}, "$.a", "int"),
    ({None: 1}, "$", "NoneType"),
    ({"a": {"x", b"y", 2.5j}}, "$.a", "complex"),
    ({"$milepost": [object()]}, '$["$milepost"][0]', "object"),
    (OrderedDict(a=1), "$", "collections.OrderedDict"),
    (defaultdict(int), "$", "collections.defaultdict"),
    (Counter("a"), "$", "collections.Counter"),
    (UserDict(), "$", "collections.UserDict"),
    (Text("a"), "$", f"{__name__}.Text"),
    (Level.LOW, "$", f"{__name__}.Level"),
    (Point(1, 2), "$", f"{__name__}.Point"),
    (Line("a", Decimal(1)), "$", f"{__name__}.Line"),
    (bytearray(b"a"), "$", "bytearray"),
    (memoryview(b"a"), "$", "memoryview"),
    (range(3), "$", "range"),
    ("a\ud800", "$", "str"),
    (["ok", "\udfff"], "$[1]", "str"),
    ({"k\ud800": 1}, "$", "str"),
    (Path(), "$", f"pathlib.{type(Path()).__name__}"),
]


@pytest.mark.parametrize("codec", TAGGED, ids=repr)
@pytest.mark.parametrize("value,path,kind", REFUSED, ids=shown)
def test_what_has_no_exact_form_is_refused_with_its_path(codec: Codec, value: Any, path: str, kind: str) -> None:
    with pytest.raises(CodecError) as caught:
        codec.encode(value)
    assert (caught.value.path, caught.value.type) == (path, kind)
    assert str(caught.value).isprintable()


def test_a_path_starts_where_the_caller_says() -> None:
    with pytest.raises(CodecError) as caught:
        JSON.encode([object()], "$.order")
    assert caught.value.path == "$.order[0]"


@pytest.mark.parametrize(
    "key,path", [("a", "$.a"), ("a-1", "$.a-1"), (3, "$[3]"), ("", '$[""]'), ("1", '$["1"]'), ('"', '$["\\""]')]
)
def test_paths_read_like_code(key: str | int, path: str) -> None:
    assert child_path("$", key) == path


@pytest.mark.parametrize("codec", TAGGED, ids=repr)
def test_depth_is_bounded_before_the_stack_is(codec: Codec) -> None:
    assert isinstance(codec, JsonCodec)

    def nest(levels: int) -> Any:
        value: Any = []
        for _ in range(levels - 1):
            value = [value]
        return value

    deepest = nest(codec.depth_max)
    assert codec.encode(codec.decode(codec.encode(deepest))) == codec.encode(deepest)
    with pytest.raises(CodecError, match=f"deeper than {codec.depth_max} levels"):
        codec.encode(nest(codec.depth_max + 1))
    with pytest.raises(CodecError, match="deeper than"):
        codec.encode(nest(100_000))


def test_tags_count_as_levels() -> None:
    value: Any = ()
    for _ in range(170):
        value = (value,)
    with pytest.raises(CodecError, match="tags included"):
        JSON.encode(value)
    assert JSON.decode(JSON.encode(value[0])) == value[0]


@pytest.mark.parametrize("codec", [*TAGGED, registered()], ids=repr)
def test_text_that_is_too_deep_to_read_is_refused(codec: Codec) -> None:
    content: str | bytes = b"\x91" * 100_000 if codec.name == "msgpack" else "[" * 100_000
    with pytest.raises(CodecError):
        codec.decode(content)


def test_deep_values_near_the_end_of_the_stack_are_a_codec_error() -> None:
    value: Any = []
    for _ in range(400):
        value = [value]
    text = JSON.encode(value)

    def at_depth(frames: int) -> None:
        if frames:
            at_depth(frames - 1)
            return
        for call in (lambda: JSON.encode(value), lambda: JSON.decode(text)):
            with pytest.raises(CodecError, match="call stack"):
                call()

    at_depth(sys.getrecursionlimit() - 300)


def test_cycles_are_named_as_such() -> None:
    cycle: dict[str, Any] = {"a": [1]}
    cycle["a"].append(cycle)
    with pytest.raises(CodecError, match="contains itself") as caught:
        JSON.encode({"x": cycle})
    assert caught.value.path == "$.x.a[1]"


def test_a_value_that_is_used_twice_is_no_cycle() -> None:
    shared = [1]
    assert JSON.decode(JSON.encode([shared, shared])) == [[1], [1]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "NaN",
        "[Infinity]",
        "1 2",
        "9" * 5_000,
        '{"$milepost":1}',
        '{"$milepost":[]}',
        '{"$milepost":["tuple"]}',
        '{"$milepost":["tuple",{}]}',
        '{"$milepost":["complex","1j"]}',
        '{"$milepost":["os.system","true"]}',
        '{"$milepost":["set",[[]]]}',
        '{"$milepost":["set",[{"$milepost":["set",[]]}]]}',
        '{"$milepost":["bytes","?"]}',
        '{"$milepost":["bytes",1]}',
        '{"$milepost":["int",1]}',
        '{"$milepost":["int","x"]}',
        '{"$milepost":["float","1.5"]}',
        '{"$milepost":["datetime","yesterday"]}',
        '{"$milepost":["datetime","2024-05-01T00:00:00+02:00[No/Where]"]}',
        '{"$milepost":["datetime","2024-05-01T00:00:00+02:00[../../etc/passwd]"]}',
        '{"$milepost":["datetime","2024-05-01T00:00:00[Europe/Berlin]"]}',
        '{"$milepost":["timedelta",[1,2]]}',
        '{"$milepost":["timedelta",[1,2,"3"]]}',
        '{"$milepost":["timedelta",[9999999999,0,0]]}',
        '{"$milepost":["decimal","1,5"]}',
        '{"$milepost":["uuid","7"]}',
        '{"$milepost":["object","Order",{"id":1}]}',
        '{"$milepost":["enum","Color","RED"]}',
        b"\xff",
    ],
    ids=lambda text: ascii(text)[:60],
)
def test_stored_text_that_means_nothing_is_refused(text: str | bytes) -> None:
    with pytest.raises(CodecError) as caught:
        JSON.decode(text, "$.entry")
    assert caught.value.path == "$.entry"


def test_the_path_of_an_unknown_tag_is_told() -> None:
    with pytest.raises(CodecError) as caught:
        JSON.decode('{"a":[0,{"b":{"$milepost":["later",1]}}]}')
    assert (caught.value.path, caught.value.type) == ("$.a[1].b", "later")


def test_a_tag_is_seen_behind_escapes_too() -> None:
    assert JSON.decode('{"\\u0024milepost":["tuple",[1]]}') == (1,)


def test_plain_json_of_anyone_is_read() -> None:
    assert JSON.decode('  {"a" : [1, 2.0, "\\u00e4"]}\n') == {"a": [1, 2.0, "ä"]}


# Registered types.


@pytest.mark.parametrize(
    "value",
    [
        Color.BLUE,
        Access(0),
        Point(1, (2,)),
        Order(1, [Line("a", Decimal("1.5"))]),
        Customer(customerName="Ann", since=dt.date(2024, 1, 2), extra=(1, {2})),
        Open.model_validate({"a": 3, "other": [Color.RED]}),
        Names(["a", "b"]),
        [Line("$milepost", Decimal(0))],
        {Point(1, 2), Point(3)},
    ],
    ids=repr,
)
def test_registered_types_come_back(value: Any) -> None:
    check_round_trip(value, registered())


def test_register_is_a_decorator_and_takes_a_lasting_name() -> None:
    codec = JsonCodec()

    @codec.register
    class Old(enum.Enum):
        A = 1

    stored = codec.encode(Old.A)
    assert stored == '{"$milepost":["enum","Old","A"]}'

    class New(enum.Enum):
        A = 1

    moved = JsonCodec()
    moved.register(New, name="Old")
    assert moved.decode(stored) is New.A


def test_registering_twice_is_harmless_and_a_taken_name_is_an_error() -> None:
    codec = JsonCodec([Line])
    codec.register(Line)
    with pytest.raises(ValueError, match="name"):
        codec.register(Order, name="Line")


def test_only_types_of_fields_can_be_registered() -> None:
    @dataclasses.dataclass
    class NeedsMore:
        a: int
        b: dataclasses.InitVar[int]

    class Choices(pydantic.BaseModel):
        a: int = pydantic.Field(1, validation_alias=pydantic.AliasChoices("x", "y"))

    for cls in (int, dict, object, NeedsMore, Choices):
        with pytest.raises(TypeError, match="cannot be registered"):
            JsonCodec().register(cls)


def test_the_shared_codec_cannot_be_changed() -> None:
    for shared in (JSON, MSGPACK):
        assert isinstance(shared, JsonCodec)
        with pytest.raises(TypeError, match="of your own"):
            shared.register(Line)


def test_fields_are_checked_again_when_they_are_read() -> None:
    codec = registered()
    for text in (
        '{"$milepost":["object","Order",{}]}',
        '{"$milepost":["object","Order",{"id":1,"unknown":2}]}',
        '{"$milepost":["object","Customer",{"name":[]}]}',
        '{"$milepost":["object","Customer",{"customerName":"Ann"}]}',
        '{"$milepost":["enum","Color","GREEN"]}',
        '{"$milepost":["enum","Access",64]}',
    ):
        with pytest.raises(CodecError):
            codec.decode(text)


def test_missing_fields_take_their_defaults() -> None:
    assert registered().decode('{"$milepost":["object","Order",{"id":5}]}') == Order(5)


def test_a_subclass_of_a_registered_type_is_not_registered() -> None:
    class Special(Line):
        pass

    with pytest.raises(CodecError):
        registered().encode(Special("a", Decimal(1)))


# The round trip as a check.


class Lossy:
    """A codec as somebody may write it: JSON as it comes."""

    name = "json"

    def encode(self, value: object, path: str = "$") -> str:
        return json.dumps(value)

    def decode(self, content: str | bytes, path: str = "$") -> Any:
        return json.loads(content)


@pytest.mark.parametrize(
    "value,path",
    [
        ({"a": [0, (1, 2)]}, "$.a[1]"),
        ({"a": {1: 2}}, "$.a"),
        ([Level.LOW], "$[0]"),
    ],
)
def test_a_value_that_does_not_come_back_equal_is_named(value: Any, path: str) -> None:
    with pytest.raises(CodecError) as caught:
        check_round_trip(value, Lossy())
    assert caught.value.path == path


def test_the_check_returns_the_copy() -> None:
    value = {"a": [1]}
    copy = check_round_trip(value, JSON)
    assert copy == value
    assert copy["a"] is not value["a"]


def test_a_field_that_is_not_stored_is_found() -> None:
    class Secretive(pydantic.BaseModel):
        shown: int = 1
        _hidden: int = pydantic.PrivateAttr(default=0)

    value = Secretive()
    codec = JsonCodec([Secretive])
    check_round_trip(value, codec)
    value._hidden = 5
    with pytest.raises(CodecError):
        check_round_trip(value, codec)


def test_nan_equals_nan_inside_anything() -> None:
    check_round_trip([math.nan, (math.nan, Decimal("NaN")), Point(1, math.nan)], registered())
    with pytest.raises(CodecError):
        require_equal([math.nan], [1.0], JSON)
    with pytest.raises(CodecError):
        require_equal([1, 2], [1], JSON)
    with pytest.raises(CodecError):
        require_equal([1], [True], JSON)


# The other codecs.


def test_bytes_pass_as_they_are() -> None:
    assert BYTES.decode(BYTES.encode(b"\0x")) == b"\0x"
    for bad in ("text", bytearray(b"x"), None):
        with pytest.raises(CodecError) as caught:
            BYTES.encode(bad, "$.a")
        assert caught.value.path == "$.a"
    with pytest.raises(CodecError):
        BYTES.decode("text")


def test_messagepack_refuses_what_it_cannot_read() -> None:
    for content in (b"", b"\xc1", b"\x92\x01", b"\x01\x01", "text", b"\xd4\x05\x00", b"\x81\x01\x02", b"\xa1\xff"):
        with pytest.raises(CodecError):
            MSGPACK.decode(content)


def test_messagepack_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ModuleNotFoundError, match=r"milepost\[msgpack\]"):
        MSGPACK.encode(1)


class Bomb:
    fired = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Bomb, "fired", True))


def test_pickle_reads_only_what_is_allowed() -> None:
    codec = PickleCodec(allow=[Line, Decimal])
    line = Line("a", Decimal("1.5"))
    assert check_round_trip({"x": [line, (1, {2})]}, codec) == {"x": [line, (1, {2})]}
    with pytest.raises(CodecError) as caught:
        PickleCodec(allow=[Line]).encode(line)
    assert caught.value.type == "decimal.Decimal"


def test_pickle_runs_nothing_that_is_not_allowed() -> None:
    with pytest.raises(CodecError, match="setattr"):
        PickleCodec().encode(Bomb())
    with pytest.raises(CodecError):
        PickleCodec().decode(pickle.dumps(Bomb()))
    dotted = b"\x80\x04\x8c\x08builtins\x8c\x0cstr.__base__\x93."
    with pytest.raises(CodecError):
        PickleCodec(allow=[Line]).decode(dotted)
    assert not Bomb.fired


@pytest.mark.parametrize("value", [lambda: 1, threading.Lock(), typing.cast("Any", iter(()))], ids=shown)
def test_pickle_refuses_what_cannot_be_pickled(value: Any) -> None:
    with pytest.raises(CodecError):
        PickleCodec().encode(value)


@pytest.mark.parametrize("content", [b"", b"\x80\x05", b"garbage", "text", struct.pack("<BQ", 0x95, 2**60)])
def test_pickle_refuses_what_is_damaged(content: str | bytes) -> None:
    with pytest.raises(CodecError):
        PickleCodec().decode(content)


# All of them.


@pytest.mark.parametrize("codec", [JSON, MSGPACK, BYTES, PickleCodec(), JsonCodec(), BytesCodec()], ids=repr)
def test_each_is_a_codec_with_a_name_that_the_server_takes(codec: Codec) -> None:
    assert isinstance(codec, Codec)
    assert codec.name.isascii()
    assert codec.name.isalnum()


def test_no_message_shows_a_value() -> None:
    canary = "canary-7351"
    codecs: list[tuple[Codec, Any]] = [
        (JSON, {"k": [canary, object()]}),
        (JSON, [canary + "\ud800"]),
        (MSGPACK, [canary, object()]),
        (BYTES, canary),
        (PickleCodec(), [canary, Bomb()]),
    ]
    for codec, value in codecs:
        with pytest.raises(CodecError) as caught:
            codec.encode(value)
        assert canary not in f"{caught.value!s}{caught.value!r}{codec!r}"
    for text in (f'["{canary}', f'{{"$milepost":["decimal","{canary}"]}}', f'{{"$milepost":["bytes","{canary}"]}}'):
        with pytest.raises(CodecError) as caught:
            JSON.decode(text)
        assert canary not in f"{caught.value!s}{caught.value!r}"
    with pytest.raises(CodecError) as caught:
        registered().decode(f'{{"$milepost":["object","Customer",{{"name":["{canary}"]}}]}}')
    assert canary not in f"{caught.value!s}{caught.value!r}{caught.value.__cause__!r}"


def test_threads_can_share_a_codec() -> None:
    codec = registered()
    failures: list[CodecError] = []

    def work(number: int) -> None:
        try:
            for _ in range(200):
                check_round_trip({"n": (number, Color.RED, [Decimal(number)])}, codec)
        except CodecError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
