"""What the golden store and the golden wire bytes say."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from milepost.v1 import checkpoint_store_pb2 as pb

FORMATS = ("store-format-1", "store-format-2")
"""Folders of all formats, the present one last."""
LARGE = "".join(f"{number:x}," for number in range(2_000))
"""Long enough to be kept in pieces."""


def _request() -> pb.SaveRequest:
    request = pb.SaveRequest(workflow_id="w", checkpoint_id="c", current_step="step", scope="s", metadata='{"a":1}')
    request.state["x"].json = '{"é":[1,null]}'
    request.state["y"].data = b"\x00\xff"
    request.state["y"].codec = "raw"
    request.labels["team"] = "red"
    return request


SAVE_REQUEST = _request()
SAVE_RESPONSE = pb.SaveResponse(
    checkpoint_id="c",
    sequence=7,
    head_checkpoint_id="c",
    create_time=Timestamp(seconds=1_700_000_000, nanos=123_000_000),
    digest=bytes(range(32)),
)


def wire_path(format_name: str, name: str) -> Path:
    """Return where the bytes of a message are kept."""
    return Path(__file__).parent / "golden" / format_name / f"{name}.bin"
