"""What gRPC itself costs: a bare `grpc.aio` server with the generated service, which answers without doing anything.

The yardstick of the throughput, latency and memory figures, in a process of its own. It decodes each request and
encodes each answer as the real server does, runs on the same event loop and under the same garbage collector settings,
and has the same options for message sizes; it has no interceptors.

With `--store` it puts each Save into a bare LMDB database and commits before it answers, right in the handler: one row,
no rules, no queue, no other thread. No server of this kind on this stack can take less for a durable Save.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from pathlib import Path

import grpc
import uvloop

from benchmarks.bare_store import BareStore
from benchmarks.payloads import MIB
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import checkpoint_store_pb2_grpc as pb_grpc

READY_PREFIX = "noop-server listening on "
RECEIVE_BYTES_MAX = 17 * MIB
SEND_BYTES_MAX = 21 * MIB
GC_THRESHOLD = 50_000

_Context = grpc.aio.ServicerContext


class NoopServicer(pb_grpc.CheckpointStoreServicer):
    """Answers every Save and every Load with the same message.

    Args:
        save_response: The SaveResponse, encoded.
        load_response: The LoadResponse, encoded.
        store: Where each Save is put and committed before it is answered; nowhere, if not given.
    """

    def __init__(self, save_response: bytes, load_response: bytes, store: BareStore | None) -> None:
        self._store = store
        self._saved = pb.SaveResponse.FromString(save_response)
        self._loaded = pb.LoadResponse.FromString(load_response)

    async def Save(  # noqa: N802  (the name that the proto gives)
        self, request: pb.SaveRequest, context: _Context[pb.SaveRequest, pb.SaveResponse]
    ) -> pb.SaveResponse:
        if self._store is not None:
            self._store.put(request.SerializeToString())
        return self._saved

    async def Load(  # noqa: N802  (the name that the proto gives)
        self, request: pb.LoadRequest, context: _Context[pb.LoadRequest, pb.LoadResponse]
    ) -> pb.LoadResponse:
        return self._loaded


async def serve(save_response: bytes, load_response: bytes, store: BareStore | None) -> None:
    """Serve on a free port of the loopback interface until the process is ended."""
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
            ("grpc.max_send_message_length", SEND_BYTES_MAX),
        ]
    )
    # The methods that are missing are answered by the generated class, as UNIMPLEMENTED.
    servicer = NoopServicer(save_response, load_response, store)  # type: ignore[abstract]
    pb_grpc.add_CheckpointStoreServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    print(f"{READY_PREFIX}127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save-response", default="", help="the SaveResponse to answer, in hexadecimal")
    parser.add_argument("--load-response", default="", help="the LoadResponse to answer, in hexadecimal")
    parser.add_argument("--store", type=Path, help="a directory to be made, where each Save is put and committed")
    arguments = parser.parse_args()
    store = BareStore(arguments.store) if arguments.store else None
    responses = bytes.fromhex(arguments.save_response), bytes.fromhex(arguments.load_response)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(*responses, store))


if __name__ == "__main__":
    main()
