"""What the clients say and hear about signals. Sans-IO, as `_calls`."""

from __future__ import annotations

from milepost import _calls, _compression, _state
from milepost._failures import locating
from milepost._texts import build
from milepost.codecs import Codec
from milepost.types import Signal
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import signal_pb2


def send_request(
    namespace: str,
    workflow_id: str,
    name: str,
    value: object,
    *,
    signal_id: str,
    codec: Codec,
    compress_over_bytes: int | None,
) -> pb.SendSignalRequest:
    """Return a SendSignal request.

    Raises:
        CodecError: The value cannot be encoded.
    """
    request = build(pb.SendSignalRequest, namespace=namespace, workflow_id=workflow_id, signal_id=signal_id, name=name)
    if value is not None:
        with locating(namespace, workflow_id):
            encoded = _state.encode_value(value, codec, compress_over_bytes=compress_over_bytes, path="value")
        request.value.CopyFrom(encoded)
    return request


def list_request(namespace: str, workflow_id: str, *, name: str | None, page_size: int | None) -> pb.ListSignalsRequest:
    """Return the request of the first page."""
    return build(
        pb.ListSignalsRequest,
        namespace=namespace,
        workflow_id=workflow_id,
        name=name,
        page_size=_calls.page_size_of(page_size, None),
        accept_compression=_compression.accepted(),
    )


def read_signal(found: signal_pb2.Signal, codec: Codec, request: pb.ListSignalsRequest) -> Signal:
    """Return a signal as programs see it.

    Raises:
        CodecError: Its value was sent with another codec, or is damaged.
    """
    value = None
    if found.HasField("value"):
        with locating(request.namespace, request.workflow_id):
            value = _state.decode_value(found.value, codec, f"signal({found.signal_id!r})")
    return Signal(
        signal_id=found.signal_id, name=found.name, value=value, create_time=_calls.read_time(found.create_time)
    )
