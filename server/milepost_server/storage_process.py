"""What the storage process runs: the worker, with the codec of the calls that reach it as bytes.

Started by `storage.process_engine` as `python -m milepost_server.storage_process`. It loads neither gRPC nor an event
loop, 20 MiB that it has no use for.
"""

from __future__ import annotations

from milepost_server.grpc_api.call_codec import PbCallCodec
from milepost_server.storage import process_worker


def main() -> None:
    """Serve until the server has gone."""
    process_worker.main(PbCallCodec)


if __name__ == "__main__":
    main()
