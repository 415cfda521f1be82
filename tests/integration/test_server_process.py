"""The server as an operator meets it: start, addresses, health, reflection, grpcurl, signals, draining, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import checkpoint_store_pb2_grpc as pb_grpc
from milepost_server import __version__
from milepost_server.limits import CEILINGS, MIB
from tests.support.deaf_caller import unread_load
from tests.support.raw_calls import SERVICE, open_channel, open_stub, read_error, refusal, save_request
from tests.support.server_process import ServerProcess, StartFailedError

GRPCURL = Path(sys.executable).parent / "grpcurl"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start servers on data directories of this test; ends them with it."""
    with contextlib.ExitStack() as stack:

        def start_one(name: str = "data", **options: Any) -> ServerProcess:
            return stack.enter_context(ServerProcess(tmp_path / name, **options))

        yield start_one


def grpcurl(*arguments: str) -> str:
    command = [str(GRPCURL), "-plaintext", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_failure(start: Any, **options: Any) -> StartFailedError:
    with pytest.raises(StartFailedError) as failed:
        start(**options)
    assert failed.value.exit_code != 0
    assert len(failed.value.stderr.strip().splitlines()) == 1, failed.value.stderr
    assert "Traceback" not in failed.value.stderr
    return failed.value


# A first session.


def test_a_first_session_by_grpcurl_alone(server: ServerProcess) -> None:
    def call(method: str, request: str) -> Any:
        return json.loads(grpcurl("-d", request, server.target, f"{SERVICE}/{method}"))

    saved = call("Save", '{"workflow_id":"w1","current_step":"a","state":{"x":{"json":"1"}}}')
    assert saved["sequence"] == "1"
    loaded = call("Load", '{"workflow_id":"w1"}')
    assert loaded["checkpoint"]["state"] == {"x": {"json": "1"}}
    listed = call("List", '{"workflow_id":"w1"}')
    assert [each["checkpoint_id"] for each in listed["checkpoints"]] == [saved["checkpoint_id"]]


def test_reflection_lists_and_describes_the_service(server: ServerProcess) -> None:
    listed = grpcurl(server.target, "list").split()
    assert SERVICE in listed
    for service in listed:
        assert f"{service} is a service" in grpcurl(server.target, "describe", service)
    assert "rpc Save" in grpcurl(server.target, "describe", SERVICE)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_answers_in_both_versions(channel: grpc.Channel, version: str) -> None:
    call: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    listed, described = call(iter(requests), timeout=30)
    names = {each.name for each in listed.list_services_response.service}
    assert {SERVICE, f"grpc.reflection.{version}.ServerReflection"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


def check_health(channel: grpc.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status
    return status


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_told_for_the_server_and_the_service(channel: grpc.Channel, service: str) -> None:
    assert check_health(channel, service) == health_pb2.HealthCheckResponse.SERVING


# Addresses.


def test_each_address_is_printed_with_its_real_port_and_all_lead_to_one_store(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "milepost.sock"
    server = start(listen=["127.0.0.1:0", f"unix:{path}", "[::1]:0"] if socket.has_ipv6 else ["127.0.0.1:0"])
    assert server.stdout.splitlines() == [f"milepost-server listening on {each}" for each in server.addresses]
    assert not any(each.endswith(":0") for each in server.addresses)
    with open_channel(server.addresses[0]) as one:
        open_stub(one).Save(save_request("w"), timeout=30)
    for target in server.addresses:
        with open_channel(target) as other:
            assert open_stub(other).Load(pb.LoadRequest(workflow_id="w"), timeout=30).checkpoint.sequence == 1


def test_a_unix_socket_is_its_owners_alone(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    start(listen=[f"unix:{path}"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_unix_socket_in_a_directory_that_others_can_change_is_refused(start: Any, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "--listen" in start_failure(start, listen=[f"unix:{shared}/s"]).stderr


def test_a_live_unix_socket_is_not_taken_away(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = start("one", listen=[f"unix:{path}"])
    assert "another server" in start_failure(start, name="two", listen=[f"unix:{path}"]).stderr
    with open_channel(first.target) as channel:
        open_stub(channel).Save(save_request("w"), timeout=30)


def test_a_socket_that_a_killed_server_left_is_replaced(start: Any, tmp_path: Path) -> None:
    server = start(listen=[f"unix:{tmp_path}/s"])
    server.restart()
    with open_channel(server.target) as channel:
        open_stub(channel).Save(save_request("w"), timeout=30)


def test_a_file_that_is_no_socket_is_left_alone(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("mine")
    assert "no socket" in start_failure(start, listen=[f"unix:{path}"]).stderr
    assert path.read_text() == "mine"


def test_a_taken_port_names_the_flag(start: Any) -> None:
    first = start("one")
    assert "--listen" in start_failure(start, name="two", listen=[first.target]).stderr


def test_nobody_can_share_the_port_of_a_server(start: Any) -> None:
    """Or it would take half of the connections."""
    host, _, port = start().target.rpartition(":")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))


@pytest.mark.parametrize(
    "address",
    ["7450", "localhost", "127.0.0.1:x", "127.0.0.1:70000", "::1:7450", "unix:", "unix:a%20b", "nowhere.invalid:1"],
)
def test_a_malformed_address_is_refused(start: Any, address: str) -> None:
    assert f"--listen {address}" in start_failure(start, listen=[address]).stderr


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_an_address_that_others_can_reach_needs_an_explicit_word(start: Any, address: str) -> None:
    assert "--insecure" in start_failure(start, listen=[address]).stderr
    if address.startswith("0"):
        start(listen=[address], arguments=["--insecure"])


# Starts that cannot be.


def test_a_second_server_on_one_data_directory_is_refused(start: Any) -> None:
    start()
    assert "data" in start_failure(start).stderr


@pytest.mark.parametrize(
    "arguments,environment,said",
    [
        ([], {"MILEPOST_SERVER__DATADIR": "x"}, "did you mean MILEPOST_SERVER__DATA_DIR?"),
        (["--config", "no-such-file.toml"], {}, "no-such-file.toml"),
        ([], {"MILEPOST_SERVER__LIMITS__ENTRIES_MAX": "none"}, "limits.entries_max"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(
    start: Any, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    assert said in start_failure(start, arguments=arguments, environment=environment).stderr


def test_a_limit_that_is_set_is_kept(start: Any) -> None:
    server = start(environment={"MILEPOST_SERVER__LIMITS__ENTRIES_MAX": "1"})
    with open_channel(server.target) as channel:
        refused = refusal(open_stub(channel).Save, save_request("w", entries={"a": "1", "b": "2"}))
    assert (refused.reason, refused.metadata["limit"], refused.metadata["allowed"]) == (
        "LIMIT_EXCEEDED",
        "entries_max",
        "1",
    )


def test_names_as_long_as_their_limits_can_be_are_stored(start: Any) -> None:
    """A limit that the database's keys cannot follow would fail every commit that meets it."""
    server = start(
        environment={
            f"MILEPOST_SERVER__LIMITS__{name.upper()}": str(CEILINGS[name])
            for name in ("namespace_bytes_max", "checkpoint_id_bytes_max", "workflow_id_bytes_max")
        }
    )
    name, text = "n" * CEILINGS["namespace_bytes_max"], "i" * CEILINGS["checkpoint_id_bytes_max"]
    workflow_id = "w" * CEILINGS["workflow_id_bytes_max"]
    manifest = "{}"
    with open_channel(server.target) as channel:
        stub = open_stub(channel)
        request = save_request(workflow_id, namespace=name, checkpoint_id=text, run_id=text, scope=workflow_id)
        request.fingerprint, request.manifest = hashlib.sha256(manifest.encode()).hexdigest(), manifest
        stub.Save(request)
        stub.Save(save_request(f"{workflow_id[:-1]}v", namespace=name, checkpoint_id=text))
        stub.SendSignal(pb.SendSignalRequest(namespace=name, workflow_id=workflow_id, signal_id=text, name=text))
        stub.AcquireLease(pb.AcquireLeaseRequest(namespace=name, workflow_id=workflow_id))
        first = stub.ListWorkflows(pb.ListWorkflowsRequest(namespace=name, page_size=1))
        second = stub.ListWorkflows(
            pb.ListWorkflowsRequest(namespace=name, page_size=1, page_token=first.next_page_token)
        )
    assert [each.workflow_id for each in (*first.workflows, *second.workflows)] == [
        f"{workflow_id[:-1]}v",
        workflow_id,
    ]


def test_what_a_raised_limit_lets_in_is_answered_too(start: Any) -> None:
    limit = 48 * MIB
    server = start(
        environment={
            f"MILEPOST_SERVER__LIMITS__{name}": str(limit) for name in ("REQUEST_BYTES_MAX", "STATE_BYTES_MAX")
        }
    )
    text = f'"{"x" * (limit - 10_000)}"'
    with open_channel(server.target) as channel:
        stub = open_stub(channel)
        stub.Save(save_request("w", entries={"a": text}))
        assert stub.Load(pb.LoadRequest(workflow_id="w")).checkpoint.state["a"].json == text


@pytest.mark.slow
def test_large_answers_that_a_caller_does_not_read_are_bounded(start: Any) -> None:
    """A caller that asks and does not read could have the server hold any number of them."""
    server = start(environment={"MILEPOST_SERVER__QUEUE__LARGE_ANSWERS_BYTES_MAX": str(16 * MIB)})
    load = pb.LoadRequest(workflow_id="w")
    with open_channel(server.target) as channel:
        stub = open_stub(channel)
        stub.Save(save_request("w", entries={"a": f'"{"x" * 12 * MIB}"'}))
        for _ in range(4):
            # One after the other they are no more than one at a time.
            stub.Load(load)
        with unread_load(server.target, load):
            refused = refusal(stub.Load, load)
            listed = refusal(stub.List, pb.ListRequest(workflow_id="w", include_state=True))
            stub.Load(pb.LoadRequest(workflow_id="w", omit_state=True))
        assert (refused.reason, refused.metadata["limit"]) == ("QUEUE_FULL", "queue.large_answers_bytes_max")
        assert refused.retry_after_s
        assert listed.metadata["limit"] == "queue.large_answers_bytes_max"
        # The server learns that the caller has gone, and lets go of what it was sending.
        deadline = time.monotonic() + 30
        while True:
            try:
                stub.Load(load, timeout=30)
                break
            except grpc.RpcError:
                assert time.monotonic() < deadline


@pytest.mark.slow
async def test_of_many_calls_at_once_each_is_answered_or_told_why_not(start: Any) -> None:
    """Left to itself gRPC drops some as CANCELLED when more than a thousand come at the same moment."""
    server = start()

    async def save(stub: Any, number: int) -> str:
        try:
            await stub.Save(save_request(f"w{number % 50}"), timeout=60)
        except grpc.aio.AioRpcError as error:
            return read_error(error).reason or error.code().name
        return "stored"

    async with grpc.aio.insecure_channel(server.target) as channel:
        stub = pb_grpc.CheckpointStoreStub(channel)
        outcomes = await asyncio.gather(*(save(stub, number) for number in range(3_000)))
    assert set(outcomes) <= {"stored", "QUEUE_FULL"}
    assert "stored" in outcomes


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(start: Any, number: signal.Signals) -> None:
    server = start()
    server.signal(number)
    assert server.wait() == 0
    assert "Traceback" not in server.stderr


@pytest.mark.slow
def test_what_was_acknowledged_before_a_drain_is_there_after_it_and_nothing_is_left_unanswered(start: Any) -> None:
    server = start()
    acknowledged: list[str] = []
    refused: list[grpc.StatusCode] = []
    started = threading.Barrier(5)

    def save_until_refused(name: str) -> None:
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            stub.Save(save_request(name, checkpoint_id="c0"), timeout=30)
            acknowledged.append(f"{name}/c0")
            started.wait()
            for number in range(1, 1_000_000):
                try:
                    stub.Save(save_request(name, checkpoint_id=f"c{number}"), timeout=30)
                except grpc.RpcError as error:
                    refused.append(error.code())
                    return
                acknowledged.append(f"{name}/c{number}")

    savers = [threading.Thread(target=save_until_refused, args=(f"w{number}",)) for number in range(4)]
    for saver in savers:
        saver.start()
    started.wait()
    assert server.stop() == 0, server.stderr
    for saver in savers:
        saver.join()
    assert set(refused) == {grpc.StatusCode.UNAVAILABLE}
    server.start()
    with open_channel(server.target) as channel:
        stub = open_stub(channel)
        for each in acknowledged:
            workflow_id, checkpoint_id = each.split("/")
            request = pb.LoadRequest(workflow_id=workflow_id, checkpoint_id=checkpoint_id)
            assert stub.Load(request, timeout=30).checkpoint.sequence


def test_a_drain_tells_watchers_of_health_and_does_not_wait_for_them(start: Any) -> None:
    server = start(arguments=["--drain-grace-s", "3600"])
    with open_channel(server.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.wait() == 0


def test_calls_are_still_served_during_the_drain_delay_and_a_second_signal_ends_it(start: Any) -> None:
    server = start(arguments=["--drain-delay-s", "300"])
    with open_channel(server.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        next(watch)
        server.signal(signal.SIGTERM)
        next(watch)
        assert check_health(channel, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        open_stub(channel).Save(save_request("w"), timeout=30)
        server.signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM


# Around the server.


def test_the_memory_engine_says_loudly_that_it_is_not_durable(start: Any, tmp_path: Path) -> None:
    server = start(arguments=["--engine", "memory"])
    with open_channel(server.target) as channel:
        open_stub(channel).Save(save_request("w"), timeout=30)
    assert server.stop() == 0
    assert "NOT DURABLE" in server.stderr
    assert not (tmp_path / "data").exists()


def test_the_server_runs_without_uvloop_too(start: Any) -> None:
    server = start(arguments=["--no-uvloop"])
    with open_channel(server.target) as channel:
        open_stub(channel).Save(save_request("w"), timeout=30)
    assert server.stop() == 0


def test_logs_are_json_where_asked_for_and_hold_no_state(start: Any) -> None:
    server = start(arguments=["--log-format", "json", "--log-level", "debug"])
    with open_channel(server.target) as channel:
        stub = open_stub(channel)
        stub.Save(save_request("w", entries={"x": '"canary-4711"'}, metadata='{"m":"canary-4711"}'), timeout=30)
        refusal(stub.Save, save_request("w", entries={"x": "canary-4711"}))
    server.stop()
    assert "canary" not in server.stderr
    for line in server.stderr.splitlines():
        assert {"time", "level", "logger", "message"} <= set(json.loads(line))


def test_the_log_tells_of_each_start_what_serves_which_store_and_where(start: Any, tmp_path: Path) -> None:
    server = start()
    assert server.stop() == 0
    first = server.stderr.splitlines()[0]
    assert f"milepost-server {__version__} serves, data in {tmp_path / 'data'}, listening on {server.target}" in first


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "milepost_server", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_verify_reports_a_sound_store(start: Any) -> None:
    server = start()
    with open_channel(server.target) as channel:
        open_stub(channel).Save(save_request("w"), timeout=30)
    server.stop()
    done = run_cli("verify", str(server.data_dir))
    assert done.returncode == 0, done.stderr
    assert "checkpoints: 1" in done.stdout
    assert "sound" in done.stdout


def test_verify_of_no_store_is_an_error_of_its_own(tmp_path: Path) -> None:
    done = run_cli("verify", str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("how", ["version", "--version"])
def test_version_is_printed(how: str) -> None:
    assert run_cli(how).stdout.startswith("milepost-server ")


def run_shell(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `$0` is Python; it gets the arguments as `$1` and so on."""
    whole = ["sh", "-c", command, sys.executable, *arguments]
    return subprocess.run(whole, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("redirection", [">/dev/full", "| true"])
def test_a_stdout_that_cannot_be_written_is_one_clear_line(redirection: str, tmp_path: Path) -> None:
    """Who starts a server learns by stdout that it serves, so it does not run on without."""
    # The reader of the pipe has gone before the server, which takes longer to start, writes to it.
    done = run_shell(
        f'"$0" -m milepost_server serve --data-dir "$1" --listen 127.0.0.1:0 {redirection}', str(tmp_path / "data")
    )
    assert done.stderr.splitlines()[0].startswith("milepost-server: stdout cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_verify_whose_report_cannot_be_written_has_not_checked(start: Any, tmp_path: Path) -> None:
    start().stop()
    done = run_shell('"$0" -m milepost_server verify "$1" >/dev/full', str(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (
        2,
        "milepost-server: stdout cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 2>&-"])
def test_no_file_of_the_server_takes_the_place_of_a_standard_stream_that_was_closed(closed: str, start: Any) -> None:
    """What is written to stderr as a last word would go to the database."""
    server = start(wrapper=["sh", "-c", f'exec "$0" "$@" {closed}'])
    standard = [str(Path(f"/proc/{server.pid}/fd/{number}").readlink()) for number in (0, 2)]
    standard += [str(Path(f"/proc/{child.pid}/fd/2").readlink()) for child in psutil.Process(server.pid).children()]
    assert all(each == "/dev/null" or each.startswith("pipe:") for each in standard)
    with open_channel(server.target) as channel:
        open_stub(channel).Save(save_request("w"), timeout=30)
    assert server.stop() == 0


def test_an_address_given_twice_is_told_as_that(start: Any, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    assert "is given twice" in start_failure(start, listen=[address, address]).stderr
    assert not (tmp_path / "socket").exists()


def test_a_caller_that_goes_away_while_it_is_answered_leaves_no_traceback(start: Any) -> None:
    server = start()
    with open_channel(server.target) as channel:
        open_stub(channel).Save(save_request("w", entries={"x": '"' + "x" * 5_000_000 + '"'}), timeout=30)
    for _ in range(10):
        with grpc.insecure_channel(server.target) as small:
            # It hangs up on receiving more than it can take.
            refused = refusal(open_stub(small).Load, pb.LoadRequest(workflow_id="w"))
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.stop() == 0
    assert "Traceback" not in server.stderr
