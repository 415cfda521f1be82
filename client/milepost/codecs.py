"""Codecs: how the value of one entry becomes JSON text or bytes, and the same value again.

Called by the clients, the in-memory stores and the runner, once for each entry. A codec either gives back
what it was given, with its type, or raises `CodecError` with the path of the culprit when it encodes; it
never coerces. No codec imports anything by a stored name: types are built only from what the program
registered.

`JSON` is the default. `grpcurl` shows its values as a person would write them. What JSON has no word for is
tagged with an object of one key, and a mapping that looks like a tag is escaped:

    value                  JSON text
    None, bool, str, list  as JSON has them
    int                    digits; beyond 2,000 bits {"$milepost":["int","0x…"]}
    float                  shortest exact digits; else {"$milepost":["float","nan"]}, "inf", "-inf"
    dict                   an object in its own order; keys must be str
    {"$milepost": x}       {"$milepost":["dict",{"$milepost":x}]}: a mapping that looks like a tag
    tuple, set, frozenset  {"$milepost":["tuple",[…]]}; sets sorted by the text of their items
    bytes                  {"$milepost":["bytes","<base64>"]}
    datetime, date, time   {"$milepost":["datetime","2024-05-01T10:00:00+02:00[Europe/Berlin]"]}; a local time
                           of the hour that comes twice ends with "[fold=1]" when it is the second
    timedelta              {"$milepost":["timedelta",[days,seconds,microseconds]]}
    Decimal, UUID          {"$milepost":["decimal","1.10"]}, {"$milepost":["uuid","…"]}
    a registered enum      {"$milepost":["enum","Color","RED"]}
    a registered dataclass, pydantic model or named tuple
                           {"$milepost":["object","Order",{"id":7}]}

A `tzinfo` that is not a `zoneinfo.ZoneInfo` comes back as a fixed offset: the same instant, equal, without
its name.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import io
import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from types import ModuleType, NoneType
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast, runtime_checkable

from typing_extensions import override

from milepost._refusals import RefusedError, advice_for, child_path, type_name
from milepost._registered_types import ObjectType, describe
from milepost._scalar_tags import READERS, SCALARS
from milepost.errors import CodecError

__all__ = [
    "BYTES",
    "DEPTH_MAX",
    "INT_BITS_MAX",
    "JSON",
    "MSGPACK",
    "BytesCodec",
    "Codec",
    "JsonCodec",
    "MsgpackCodec",
    "PickleCodec",
    "check_round_trip",
    "child_path",
    "require_equal",
]

T = TypeVar("T")

TAG: Final = "$milepost"
DEPTH_MAX: Final = 512
"""Containers open at once in the encoded value, those of tags included: the server's limit for JSON."""
INT_BITS_MAX: Final = 2_000
"""Larger integers are hexadecimal: how many decimal digits Python reads is a setting, at least 640."""

_AS_IS: Final = frozenset({bool, NoneType})
_CONTAINERS: Final = frozenset({dict, list})
_INT_END: Final = 1 << 53  # What every JSON reader holds exactly; only saves the look at bit_length().
_LONG: Final = 8  # Items from which a look at the whole sequence is faster than one at each.


@runtime_checkable
class Codec(Protocol):
    """What a client needs to store a value and to read it back.

    An implementation must be safe to call from several threads and must answer the same bytes for the same
    value: unchanged entries are recognised by them. What it refuses, it refuses with `CodecError`, when it encodes.
    """

    @property
    def name(self) -> str:
        """Name stored with every value: 1 to 64 of `a-z A-Z 0-9 . _ + - :`. One name is one format, for ever."""
        ...

    def encode(self, value: object, path: str = "$") -> str | bytes:
        """Return the stored form. Text means JSON text and is for codecs of the name "json" only."""
        ...

    def decode(self, content: str | bytes, path: str = "$") -> Any:
        """Return the value that `encode` was given."""
        ...


def check_round_trip(value: T, codec: Codec, path: str = "$") -> T:
    """Return what the codec reads back, once it is known to be equal and of the same types all through.

    Raises:
        CodecError: The codec refuses the value, or gives another one back; names the first place that
        differs.
    """
    found = codec.decode(codec.encode(value, path), path)
    require_equal(value, found, codec, path)
    return cast("T", found)


def require_equal(value: object, found: object, codec: Codec, path: str = "$") -> None:
    """Raise `CodecError` where `found`, read back by the codec, is not what `value` was.

    NaN counts as equal to NaN. Two values of a type that is no container are equal when `==` says so.
    """
    try:
        _require_equal(value, found)
    except RefusedError as refused:
        raise refused.at(path, codec.name) from None
    except RecursionError:
        raise _too_deep_for_the_stack(value, path, codec.name) from None


def has_no_tag(content: str | bytes) -> bool:
    """Tell whether JSON text holds nothing but what JSON has a word for."""
    # A tag may hide behind an escape.
    return isinstance(content, str) and f'"{TAG}"' not in content and "\\u" not in content


class JsonCodec:
    """JSON text that a person can read and write, with tags for what JSON has no word for.

    Types beyond those in the module's table have to be registered: `JsonCodec([Order, Color])`, or `register`
    as a decorator. Only exact types count: a subclass of `dict`, `str` or `int` is refused, for it would come
    back as its base.
    """

    depth_max: int = DEPTH_MAX
    _is_shared = False

    def __init__(self, types: Iterable[type] = ()) -> None:
        self._lower_by_type: dict[type, Callable[[Any, int], object]] = {
            tuple: self._lower_tuple,
            set: self._lower_set,
            frozenset: self._lower_set,
        }
        self._object_by_name: dict[str, ObjectType] = {}
        self._enum_by_name: dict[str, type[enum.Enum]] = {}
        for cls in types:
            self.register(cls)

    @property
    def name(self) -> str:
        """Name stored with every value."""
        return "json"

    @override
    def __repr__(self) -> str:
        names = sorted([*self._object_by_name, *self._enum_by_name])
        return f"{type(self).__name__}([{', '.join(names)}])"

    def register(self, cls: type[T], *, name: str | None = None) -> type[T]:
        """Let values of exactly this type be stored and built.

        It may be an enum, a dataclass, a pydantic model or a named tuple. Enum members are stored by name
        (flags by number), the others by field. Reading goes through the constructor, so what it checks is
        checked again. Nothing else of an object is stored: no private attribute, and none that is no field. A type that
        is moved or renamed stays readable if `name` stays.

        Args:
            name: What is stored, unique in this codec. Default: the class's own name, without its module.

        Raises:
            TypeError: The type is none of these, or its constructor does not take its own fields. Or the
                codec is one of the module's constants, which the whole process shares.
            ValueError: The name is taken by another type.
        """
        if self._is_shared:
            kind = type(self).__name__
            raise TypeError(f"this codec is shared by the whole process: register types with a {kind} of your own")
        name = cls.__name__ if name is None else name
        taken = self._enum_by_name.get(name) or self._object_by_name.get(name)
        if taken is not None and (taken.cls if isinstance(taken, ObjectType) else taken) is not cls:
            raise ValueError(f"the name {name!r} is registered for another type: pass name=…")
        if issubclass(cls, enum.Enum):
            self._enum_by_name[name] = cls
            self._lower_by_type[cls] = _lower_enum(name, is_flag=issubclass(cls, enum.Flag), room=self._room)
        else:
            described = describe(cls, name)
            self._object_by_name[name] = described
            self._lower_by_type[cls] = self._lower_object(described)
        return cls

    def encode(self, value: object, path: str = "$") -> str | bytes:
        """Return compact JSON text.

        Raises:
            CodecError: Something in the value has no exact form; `path` names the place, `type` what was
            found there.
        """
        try:
            return self._dump(self._lower(value, 0))
        except RefusedError as refused:
            raise refused.at(path, self.name) from None
        except RecursionError:
            raise _too_deep_for_the_stack(value, path, self.name) from None

    def decode(self, content: str | bytes, path: str = "$") -> Any:
        """Return the value that `encode` was given; plain JSON written by anyone is read as JSON.

        Raises:
            CodecError: The text is no JSON, or has a tag or a type that this codec does not know.
        """
        try:
            tree, tagged = self._parse(content)
            return self._lift(tree) if tagged else tree
        except RefusedError as refused:
            raise refused.at(path, self.name, reading=True) from None
        except RecursionError:
            raise _too_deep_for_the_stack(content, path, self.name) from None

    def _dump(self, node: object) -> str | bytes:
        return _write_json(node)

    def _parse(self, content: str | bytes) -> tuple[Any, bool]:
        """Return the tree of plain values, and whether there may be a tag in it."""
        try:
            text = content if isinstance(content, str) else content.decode("utf-8")
            # Almost no value has a tag: the search is far cheaper than a walk.
            return _read_json(text), not has_no_tag(text)
        except ValueError as error:
            raise RefusedError(f"is no JSON text ({_reason(error)})", content) from None

    # `_lower` makes plain values (None, bool, int, float, str, list, dict) of any; `_lift` is its inverse.
    # What needs no change is not copied: an ordinary state costs one look at each of its values.

    def _lower(self, value: Any, depth: int) -> object:
        kind = type(value)
        if kind is str:
            return _checked_text(value)
        if kind in _AS_IS:
            return value
        if kind is int:
            return self._lower_int(value, depth)
        if kind is float:
            return self._lower_float(value, depth)
        if kind is dict:
            return self._lower_dict(value, depth)
        if kind is list:
            return self._lower_list(value, depth)
        if kind is bytes:
            return self._lower_bytes(value, depth)
        lower = self._lower_by_type.get(kind)
        if lower is not None:
            return lower(value, depth)
        scalar = SCALARS.get(kind)
        if scalar is None:
            raise RefusedError(advice_for(kind), value)
        self._room(value, depth, 3 if kind is dt.timedelta else 2)
        return {TAG: [scalar.tag, scalar.write(value)]}

    def _lower_dict(self, value: dict[Any, Any], depth: int) -> object:
        self._room(value, depth, 1)
        is_like_a_tag = len(value) == 1 and TAG in value
        if is_like_a_tag:
            self._room(value, depth, 3)
            depth += 2
        changed: dict[str, object] | None = None
        key: Any = None
        try:
            for key, item in value.items():
                if type(key) is not str:
                    raise RefusedError("is a key that is no str", key, at_parent=True)
                if not key.isascii():
                    _checked_text(key, at_parent=True)
                kind = type(item)
                if kind is str:
                    if not item.isascii():
                        _checked_text(item)
                elif kind not in _AS_IS and not (kind is int and -_INT_END < item < _INT_END):
                    # Straight to the next container: one frame a level, so that 512 of them fit the stack.
                    if kind is dict:
                        lowered = self._lower_dict(item, depth + 1)
                    elif kind is list:
                        lowered = self._lower_list(item, depth + 1)
                    else:
                        lowered = self._lower(item, depth + 1)
                    if lowered is not item:
                        changed = dict(value) if changed is None else changed
                        changed[key] = lowered
        except RefusedError as refused:
            refused.passes(key, value)
            raise
        result = value if changed is None else changed
        return {TAG: ["dict", result]} if is_like_a_tag else result

    def _lower_list(self, value: list[Any], depth: int) -> object:
        self._room(value, depth, 1)
        if len(value) > _LONG and _is_plain_throughout(value):
            return value
        changed: list[object] | None = None
        index = 0
        try:
            for index, item in enumerate(value):
                kind = type(item)
                if kind is str:
                    if not item.isascii():
                        _checked_text(item)
                elif kind not in _AS_IS and not (kind is int and -_INT_END < item < _INT_END):
                    if kind is dict:
                        lowered = self._lower_dict(item, depth + 1)
                    elif kind is list:
                        lowered = self._lower_list(item, depth + 1)
                    else:
                        lowered = self._lower(item, depth + 1)
                    if lowered is not item:
                        changed = list(value) if changed is None else changed
                        changed[index] = lowered
        except RefusedError as refused:
            refused.passes(index, value)
            raise
        return value if changed is None else changed

    def _lower_tuple(self, value: tuple[Any, ...], depth: int) -> object:
        self._room(value, depth, 3)
        # A list, not the tuple itself: MessagePack's strict packer takes no tuples.
        return {TAG: ["tuple", self._lower_list(list(value), depth + 2)]}

    def _lower_set(self, value: set[object] | frozenset[object], depth: int) -> object:
        self._room(value, depth, 3)
        # The order of a set differs between processes; the stored bytes must not.
        items = [self._lower(item, depth + 3) for item in value]
        items.sort(key=self._dump)
        return {TAG: ["set" if type(value) is set else "frozenset", items]}

    def _lower_object(self, described: ObjectType) -> Callable[[Any, int], object]:
        def lower(value: Any, depth: int) -> object:
            self._room(value, depth, 3)
            fields: dict[str, object] = {}
            field = ""
            try:
                for field, item in described.read(value).items():
                    fields[field] = self._lower(item, depth + 3)
            except RefusedError as refused:
                refused.passes(field, value)
                raise
            return {TAG: ["object", described.name, fields]}

        return lower

    def _lower_int(self, value: int, depth: int) -> object:
        if value.bit_length() <= INT_BITS_MAX:
            return value
        self._room(value, depth, 2)
        return {TAG: ["int", hex(value)]}

    def _lower_float(self, value: float, depth: int) -> object:
        if math.isfinite(value):
            return value
        self._room(value, depth, 2)
        return {TAG: ["float", repr(value)]}

    def _lower_bytes(self, value: bytes, depth: int) -> object:
        self._room(value, depth, 2)
        return {TAG: ["bytes", base64.b64encode(value).decode("ascii")]}

    def _room(self, value: object, depth: int, levels: int) -> None:
        if depth + levels > self.depth_max:
            raise RefusedError(f"is nested deeper than {self.depth_max} levels, tags included", value, deep=True)

    def _lift(self, node: Any) -> Any:
        kind = type(node)
        key: Any = None
        if kind is dict and len(node) == 1 and TAG in node:
            return self._lift_tag(node[TAG])
        if kind in _CONTAINERS:
            try:
                # The tree is our own: values change in place, keys do not.
                for key, item in node.items() if kind is dict else enumerate(node):
                    if type(item) in _CONTAINERS:
                        node[key] = self._lift(item)
            except RefusedError as refused:
                refused.passes(key, node)
                raise
        return node

    def _lift_tag(self, body: Any) -> Any:
        match body:
            case ["dict", {}]:
                escaped = body[1]
                try:
                    for key, item in escaped.items():
                        escaped[key] = self._lift(item)
                except RefusedError as refused:
                    refused.passes(TAG, escaped)
                    raise
                return escaped
            case ["tuple", list(items)]:
                return tuple(self._lift(items))
            case ["set" | "frozenset" as tag, list(items)]:
                try:
                    return set(self._lift(items)) if tag == "set" else frozenset(self._lift(items))
                except TypeError:
                    raise RefusedError(f"has a {tag!r} of items that cannot be hashed", body) from None
            case ["object", str(name), dict(fields)]:
                described = self._object_by_name.get(name)
                if described is None:
                    raise RefusedError(f"is of the type {name!r}, which is not registered", body, found=name)
                return described.build(self._lift_fields(fields))
            case ["enum", str(name), str() | int() as member]:
                members = self._enum_by_name.get(name)
                if members is None:
                    raise RefusedError(f"is of the enum {name!r}, which is not registered", body, found=name)
                try:
                    return members[member] if isinstance(member, str) else members(member)
                except (KeyError, ValueError):
                    raise RefusedError(f"is no member of the enum {name!r}", body, found=name) from None
            case [str(tag), payload] if tag in READERS:
                try:
                    return READERS[tag](payload)
                except RefusedError:
                    raise
                except (ValueError, TypeError, LookupError, ArithmeticError):
                    raise RefusedError(f"has a malformed {tag!r}", body, found=tag) from None
            case [str(tag), *_]:
                raise RefusedError(f"has the unknown or malformed tag {tag!r}", body, found=tag)
            case _:
                raise RefusedError(f"has a {TAG!r} that is no tag", body)

    def _lift_fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        field = ""
        try:
            # Not `_lift(fields)`: an object whose only field is called "$milepost" is no tag.
            for field, item in fields.items():
                fields[field] = self._lift(item)
        except RefusedError as refused:
            refused.passes(field, fields)
            raise
        return fields


def _lower_enum(name: str, *, is_flag: bool, room: Callable[[object, int, int], None]) -> Callable[[Any, int], object]:
    def lower(value: enum.Enum, depth: int) -> object:
        room(value, depth, 2)
        return {TAG: ["enum", name, value.value if is_flag else value.name]}

    return lower


class MsgpackCodec(JsonCodec):
    """The same types and tags as `JsonCodec`, as MessagePack: smaller, bytes as they are, not readable.

    Needs the extra: `pip install "milepost[msgpack]"`.
    """

    # The packer of msgpack itself stops at 511.
    depth_max = 500

    @property
    @override
    def name(self) -> str:
        return "msgpack"

    @override
    def _dump(self, node: object) -> bytes:
        try:
            return cast("bytes", _import_msgpack().packb(node, use_bin_type=True, strict_types=True))
        except ValueError as error:
            raise RefusedError(f"does not fit MessagePack ({_reason(error)})", node) from None

    @override
    def _parse(self, content: str | bytes) -> tuple[Any, bool]:
        if isinstance(content, str):
            raise RefusedError("is text, not MessagePack", content)
        try:
            tree = _import_msgpack().unpackb(content, raw=False, strict_map_key=True, ext_hook=_refuse_extension)
        except ValueError as error:
            raise RefusedError(f"is no MessagePack ({_reason(error)})", content) from None
        return tree, TAG.encode() in content

    @override
    def _lower_int(self, value: int, depth: int) -> object:
        if value.bit_length() < 64:
            return value
        self._room(value, depth, 2)
        return {TAG: ["int", hex(value)]}

    @override
    def _lower_bytes(self, value: bytes, depth: int) -> object:
        return value


class BytesCodec:
    """Values that are bytes already, stored as they are. Anything else is refused."""

    @property
    def name(self) -> str:
        """Name stored with every value."""
        return "bytes"

    @override
    def __repr__(self) -> str:
        return "BytesCodec()"

    def encode(self, value: object, path: str = "$") -> bytes:
        """Return the value itself."""
        if type(value) is not bytes:
            raise RefusedError("is not bytes, the only type of the codec 'bytes'", value).at(path, self.name)
        return value

    def decode(self, content: str | bytes, path: str = "$") -> bytes:
        """Return the bytes themselves."""
        if isinstance(content, str):
            raise RefusedError("is text, not bytes", content).at(path, self.name, reading=True)
        return content


class PickleCodec:
    """Pickles of the classes in an allow-list, and of nothing else.

    Never a default: whoever can write to the store can make a reader call any of these classes with any
    arguments, and set attributes of theirs. List classes only, and none whose construction does something. A
    stored name is looked up in the list and never imported. Every value is read back when it is encoded, so
    what cannot be loaded is not saved.

    Args:
        allow: The classes (or module-level functions that pickles of them refer to).
    """

    def __init__(self, allow: Iterable[Callable[..., object]] = ()) -> None:
        self._allowed = {(item.__module__, item.__qualname__): item for item in allow}

    @property
    def name(self) -> str:
        """Name stored with every value."""
        return "pickle"

    @override
    def __repr__(self) -> str:
        return f"PickleCodec(allow=[{', '.join(sorted(name for _, name in self._allowed))}])"

    def encode(self, value: object, path: str = "$") -> bytes:
        """Return a pickle of protocol 5 that `decode` has been seen to accept.

        Raises:
            CodecError: The value cannot be pickled, or needs a class that is not allowed.
        """
        try:
            content = pickle.dumps(value, protocol=5)
        except Exception as error:  # any class's `__reduce__` runs here
            raise RefusedError(f"cannot be pickled ({type(error).__name__})", value).at(path, self.name) from error
        self._load(content, path, value, reading=False)
        return content

    def decode(self, content: str | bytes, path: str = "$") -> Any:
        """Return the value that `encode` was given.

        Raises:
            CodecError: The pickle is damaged, or names something that is not allowed.
        """
        return self._load(content, path, content, reading=True)

    def _load(self, content: str | bytes, path: str, culprit: object, *, reading: bool) -> Any:
        if isinstance(content, str):
            raise RefusedError("is text, not a pickle", content).at(path, self.name, reading=reading)
        try:
            return _AllowListUnpickler(content, self._allowed).load()
        except RefusedError as refused:
            raise refused.at(path, self.name, reading=reading) from None
        except Exception as error:  # unpickling may raise anything
            reason = f"cannot be unpickled ({type(error).__name__})"
            raise RefusedError(reason, culprit).at(path, self.name, reading=reading) from error


class _AllowListUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, allowed: Mapping[tuple[str, str], object]) -> None:
        super().__init__(io.BytesIO(content))
        self._allowed = allowed

    @override
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return self._allowed[module_name, global_name]
        except KeyError:
            name = f"{module_name}.{global_name}"
            raise RefusedError(f"needs {name}, which is not in PickleCodec(allow=…)", None, found=name) from None


def _require_equal(value: Any, found: Any) -> None:
    kind = type(value)
    if kind is not type(found):
        raise RefusedError(f"comes back as {type_name(type(found))}", value)
    key: object = None
    try:
        if kind is dict:
            if value.keys() != found.keys():
                raise RefusedError("comes back with other keys", value)
            for key, item in value.items():
                _require_equal(item, found[key])
        elif kind in _SEQUENCES or isinstance(value, tuple):
            if len(value) != len(found):
                raise RefusedError("comes back with another length", value)
            for index, item in enumerate(value):
                key = index
                _require_equal(item, found[index])
        elif kind is Decimal:
            # As text: a signalling NaN cannot be compared, and 1.0 is not 1.00.
            if str(value) != str(found):
                raise RefusedError("comes back as another value", value)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                key = field.name
                _require_equal(getattr(value, key), getattr(found, key))
        elif value != found and not (value != value and found != found):  # noqa: PLR0124  NaN
            raise RefusedError("comes back as another value", value)
    except RefusedError as refused:
        refused.passes(key, value)
        raise


_SEQUENCES: Final = frozenset({list, tuple})


def _is_plain_throughout(items: list[Any]) -> bool:
    """Tell fast whether a long sequence of one type needs no look at its items one by one."""
    kinds = set(map(type, items))
    if len(kinds) != 1:
        return False
    kind = kinds.pop()
    if kind is float:
        return all(map(math.isfinite, items))
    if kind is str:
        return all(map(str.isascii, items))
    if kind is int:
        return bool(min(items) > -_INT_END and max(items) < _INT_END)
    return kind is bool


def _checked_text(text: str, *, at_parent: bool = False) -> str:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            reason = "has a lone surrogate, which is no Unicode text"
            raise RefusedError(reason, text, at_parent=at_parent) from None
    return text


_write_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_read_json = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _import_msgpack() -> ModuleType:
    try:
        import msgpack  # noqa: PLC0415  an extra: only who uses it has it
    except ImportError:
        raise ModuleNotFoundError(
            'MSGPACK needs the package msgpack: pip install "milepost[msgpack]"', name="msgpack"
        ) from None
    return cast("ModuleType", msgpack)


def _refuse_extension(code: int, _content: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")


def _reason(error: ValueError) -> str:
    """Return what is wrong without quoting the value: some errors of the standard library do."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.pos}"
    return type(error).__name__


def _too_deep_for_the_stack(value: object, path: str, codec: str) -> CodecError:
    return RefusedError("is nested deeper than the call stack allows here", value).at(path, codec)


def _shared(codec: JsonCodec) -> JsonCodec:
    codec._is_shared = True  # noqa: SLF001 - a class of this module
    return codec


JSON: Final[Codec] = _shared(JsonCodec())
"""The default. Shared and without registered types: make a `JsonCodec` to register some."""

MSGPACK: Final[Codec] = _shared(MsgpackCodec())
"""MessagePack; needs the extra `msgpack`."""

BYTES: Final[Codec] = BytesCodec()
"""For states whose values are bytes already."""
