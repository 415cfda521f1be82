"""What the storage process runs: the worker, with the codec of the calls that reach it as bytes.

Started by `storage.process_engine` as `python -m milepost_server.storage_process`.
"""

from __future__ import annotations

import importlib.util
import sys

from milepost_server.limits import Limits
from milepost_server.storage import process_worker
from milepost_server.storage.encoded import CallCodec


def main() -> None:
    """Serve until the server has gone."""
    process_worker.main(_make_codec)


def _make_codec(limits: Limits) -> CallCodec:
    _keep_client_out()
    # Only now: it imports the generated code.
    from milepost_server.grpc_api.call_codec import PbCallCodec  # noqa: PLC0415

    return PbCallCodec(limits)


def _keep_client_out() -> None:
    """Let `milepost.v1` be imported without the client around it.

    The package's own module imports the client, and so gRPC and asyncio: 20 MiB that this process has no use for.
    """
    spec = importlib.util.find_spec("milepost")
    assert spec is not None
    sys.modules.setdefault("milepost", importlib.util.module_from_spec(spec))


if __name__ == "__main__":
    main()
