"""Channels belong to a loop and to a process; a client finds its way between loops and refuses a foreign process."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading

import grpc
import pytest

from milepost import AsyncClient, Client
from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.scripted_server import scripted_server


def test_a_client_serves_one_loop_after_another() -> None:
    with scripted_server() as server:
        server.on("DeleteWorkflow", *[pb.DeleteWorkflowResponse(existed=True)] * 3)
        client = AsyncClient(server.target)

        async def use() -> bool:
            return await client.delete("w")

        assert asyncio.run(use())
        assert asyncio.run(use())
        assert len(client._connections) == 1, "the channel of the closed loop was dropped"

        async def use_and_close() -> bool:
            async with client:
                return await client.delete("w")

        assert asyncio.run(use_and_close())
        gc.collect()


def test_a_client_serves_two_loops_at_once() -> None:
    with scripted_server() as server:
        server.on("DeleteWorkflow", *[pb.DeleteWorkflowResponse(existed=True)] * 2)
        client = AsyncClient(server.target)
        both_used = threading.Barrier(2)
        found: list[bool] = []

        async def use() -> None:
            found.append(await client.delete("w"))
            await asyncio.to_thread(both_used.wait, 10)

        threads = [threading.Thread(target=asyncio.run, args=(use(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert found == [True, True]
        asyncio.run(client.close())


async def test_a_cancelled_call_is_cancelled_at_the_server() -> None:
    with scripted_server() as server:
        arrived, cancelled = threading.Event(), threading.Event()

        def hold(request: pb.LoadRequest, context: grpc.ServicerContext) -> pb.LoadResponse:
            context.add_callback(cancelled.set)
            arrived.set()
            assert cancelled.wait(10)
            return pb.LoadResponse()

        server.on("Load", hold)
        async with AsyncClient(server.target) as client:
            task = asyncio.create_task(client.load("w"))
            assert await asyncio.to_thread(arrived.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(cancelled.wait, 10)


def run_forking(body: str) -> str:
    """Run a program that forks, in a process of its own; return what it prints."""
    program = textwrap.dedent(
        """
        import asyncio, os, sys
        from milepost import AsyncClient, Client, ClientForkedError
        target = sys.argv[1]
        def in_child(work):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    text = str(work())
                except ClientForkedError as error:
                    text = f"ClientForkedError {error.owner_pid == os.getppid()} {error.pid == os.getpid()}"
                except BaseException as error:
                    text = repr(error)
                os.write(write, text.encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as answers:
                print(answers.read())
            os.waitpid(pid, 0)
        """
    )
    with scripted_server() as server:
        server.on("DeleteWorkflow", *[pb.DeleteWorkflowResponse(existed=True)] * 4)
        done = subprocess.run(
            [sys.executable, "-c", program + textwrap.dedent(body), server.target],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1", "GRPC_VERBOSITY": "NONE"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
def test_an_unused_client_works_in_a_forked_child() -> None:
    assert run_forking("client = Client(target)\nin_child(lambda: client.delete('w'))") == "True"
    async_body = "client = AsyncClient(target)\nin_child(lambda: asyncio.run(client.delete('w')))"
    assert run_forking(async_body) == "True"


@needs_fork
@pytest.mark.parametrize(
    "body",
    [
        "client = Client(target)\nclient.delete('w')\nin_child(lambda: client.delete('w'))",
        """
        client = AsyncClient(target)
        asyncio.run(client.delete('w'))
        in_child(lambda: asyncio.run(client.delete('w')))
        """,
    ],
    ids=["Client", "AsyncClient"],
)
def test_a_used_client_says_so_in_a_forked_child(body: str) -> None:
    assert run_forking(body) == "ClientForkedError True True"


@needs_fork
def test_a_new_async_client_says_so_where_grpc_would_hang() -> None:
    body = """
    asyncio.run(AsyncClient(target).delete('w'))
    in_child(lambda: asyncio.run(AsyncClient(target).delete('w')))
    """
    assert run_forking(body) == "ClientForkedError True True"


@needs_fork
def test_leaving_the_block_in_a_forked_child_does_not_hang() -> None:
    async_body = """
    client = AsyncClient(target)
    asyncio.run(client.delete('w'))
    in_child(lambda: asyncio.run(client.close()))
    """
    assert run_forking(async_body) == "None"
    assert run_forking("client = Client(target)\nclient.delete('w')\nin_child(client.close)") == "None"


@needs_fork
@pytest.mark.parametrize(
    "call", ["save('w', state={}, after='start')", "save_all([SaveItem(workflow_id='w', state={})])", "close()"]
)
def test_a_lock_that_a_thread_held_at_the_fork_hangs_no_child(call: str) -> None:
    body = f"""
    import signal
    from milepost import SaveItem
    client = Client(target)
    client.delete('w')
    client._lock.acquire()
    client._digests._lock.acquire()
    in_child(lambda: (signal.alarm(10), client.{call})[1])
    """
    assert run_forking(body) == ("None" if call == "close()" else "ClientForkedError True True")


def test_a_client_is_shared_by_threads() -> None:
    with scripted_server() as server:
        server.on("DeleteWorkflow", *[pb.DeleteWorkflowResponse(existed=True)] * 8)
        with Client(server.target) as client:
            found: list[bool] = []
            threads = [threading.Thread(target=lambda: found.append(client.delete("w"))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            assert found == [True] * 8
            assert len(client._connections) == 1
