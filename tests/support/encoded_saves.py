"""Saves that tests make as commands, encoded on their way through the committer as every Save is."""

from __future__ import annotations

import msgspec

from milepost_server.grpc_api.call_codec import PbCallCodec
from milepost_server.model import Command, EncodedSaveCommand, SaveCommand


class SaveCodec(PbCallCodec):
    """Reads a Save that `encoded` has written; all else as the server does."""

    def decode_save(self, body: bytes) -> SaveCommand:
        return msgspec.msgpack.decode(body, type=SaveCommand)


def encoded(command: Command) -> Command:
    """Return a Save encoded, and any other command as it is."""
    if not isinstance(command, SaveCommand):
        return command
    body = msgspec.msgpack.encode(command)
    return EncodedSaveCommand(body, len(body))
