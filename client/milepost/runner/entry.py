"""One entry as a run keeps it: encoded, known to come back as it was, fast to hand out and to compare.

Every step gets values of its own, and every value that a step leaves is compared with what it got. To decode and to
encode all of them for that would be most of what a step costs. So a value that cannot be changed in place is kept as it
is, and of any other that plain JSON has a word for there is an image beside the content: bytes that the interpreter
reads and writes several times as fast as text, and that are the same for equal values of the same types alone. An image
never leaves the process.
"""

from __future__ import annotations

import marshal
from typing import Any, Final, TypeAlias

from typing_extensions import override

from milepost._refusals import child_path, type_name
from milepost._state import EncodedValue
from milepost.codecs import Codec, JsonCodec, MsgpackCodec, has_no_tag, require_equal
from milepost.errors import CodecError

__all__ = ["Content", "Entry", "Exactly"]

Content: TypeAlias = str | bytes
"""An encoded value: text by codecs that write JSON, else bytes."""

# Values that cannot be changed in place: kept decoded, and handed out again and again. Floats are not among them: 0.0
# equals -0.0, and NaN not even itself.
_ATOMS: Final = frozenset({str, int, bool, type(None), bytes})
_NO_ATOM: Final = object()
# The last one without references: in later ones the bytes depend on who else holds a part of the value.
_IMAGE_VERSION: Final = 2


class Entry:
    """The value of one entry, encoded. Make it with `Exactly`; hands out values that belong to the caller."""

    __slots__ = ("_atom", "_codec", "_encoded", "_image", "content")

    def __init__(self, content: Content, codec: Codec, *, atom: Any = _NO_ATOM, image: bytes | None = None) -> None:
        self.content = content
        self._codec = codec
        self._atom = atom
        self._image = image
        self._encoded: EncodedValue | None = None

    def value(self, key: str) -> Any:
        """Return the value, decoded for the caller. The key is for errors."""
        if self._atom is not _NO_ATOM:
            return self._atom
        if self._image is not None:
            return marshal.loads(self._image)  # noqa: S302  of this very process
        found = _decode(self._codec, key, self.content)
        self._image = _image_if_plain(self._codec, self.content, found)
        return found

    def is_surely(self, value: Any) -> bool:
        """Tell fast that a value is this one, and of the same types all through. False says nothing."""
        if self._image is not None:
            return _image(value) == self._image
        kind = type(value)
        atom = self._atom
        return kind in _ATOMS and (value is atom or (kind is type(atom) and bool(value == atom)))

    def encoded(self) -> EncodedValue:
        """Return what a store takes in the value's place: always the same object."""
        if self._encoded is None:
            self._encoded = EncodedValue(self.content, self._codec.name)
        return self._encoded

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]

    @override
    def __repr__(self) -> str:
        return f"Entry(size_bytes={len(self.content)})"


class Exactly:
    """Encodes values and reads them back; errors say where and have the path of the culprit."""

    __slots__ = ("_codec", "_keeps_atoms", "_where")

    def __init__(self, codec: Codec, where: str) -> None:
        self._codec = codec
        self._where = where
        # Of our own codecs it is known that atoms which they encode come back as they were: their tests say so.
        self._keeps_atoms = type(codec) in {JsonCodec, MsgpackCodec}

    def encode(self, key: str, value: Any) -> Content:
        """Return the encoded value.

        Raises:
            CodecError: The key is no text, or the value cannot be encoded.
        """
        if type(key) is not str:
            kind = type_name(type(key))
            raise self._at(CodecError(f"entry keys are str, not {kind}", path="$", type=kind))
        try:
            return self._codec.encode(value)
        except CodecError:
            pass
        # Once more, to learn the path: making one for each value that passes would cost as much as encoding it.
        try:
            return self._codec.encode(value, child_path("$", key))
        except CodecError as error:
            raise self._at(error) from error.__cause__

    def entry(self, key: str, value: Any, content: Content) -> Entry:
        """Return the entry of a value and what it was encoded to.

        Raises:
            CodecError: The value does not come back equal.
        """
        codec = self._codec
        if self._keeps_atoms and type(value) in _ATOMS:
            return Entry(content, codec, atom=value)
        found = _decode(codec, key, content)
        if type(found) in _ATOMS and type(found) is type(value) and found == value:
            return Entry(content, codec, atom=found)
        image = _image_if_plain(codec, content, found)
        if image is None or image != _image(value):
            try:
                require_equal(value, found, codec, child_path("$", key))
            except CodecError as error:
                raise self._at(error) from None
        return Entry(content, codec, image=image)

    def is_read_from(self, key: str, value: Any, content: Content) -> bool:
        """Tell whether a value is what a content stands for, though its own may differ, as pickles of equals may."""
        try:
            self.entry(key, value, content)
        except CodecError:
            return False
        return True

    def _at(self, error: CodecError) -> CodecError:
        if not self._where:
            return error
        return CodecError(f"{self._where}: {error.message}", path=error.path, type=error.type)


def _decode(codec: Codec, key: str, content: Content) -> Any:
    try:
        return codec.decode(content)
    except CodecError:
        return codec.decode(content, child_path("$", key))  # raises again, with the path


def _image_if_plain(codec: Codec, content: Content, value: Any) -> bytes | None:
    # A tag may stand for bytes, and whatever has a buffer looks like bytes in an image.
    return _image(value) if type(codec) is JsonCodec and has_no_tag(content) else None


def _image(value: Any) -> bytes | None:
    """Return the image of a value; None where it has none: it holds something that is no plain value."""
    try:
        return marshal.dumps(value, _IMAGE_VERSION)
    except ValueError:
        return None
