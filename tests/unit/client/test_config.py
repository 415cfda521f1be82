"""Where a client connects and as whom."""

from __future__ import annotations

import pickle

import pytest

from milepost import TLS, AsyncClient, Client
from milepost._config import is_local, resolve
from milepost._retry import RetryPolicy


def test_arguments_come_before_the_environment_and_the_environment_before_defaults() -> None:
    environ = {"MILEPOST_TARGET": "unix:/run/m.sock", "MILEPOST_NAMESPACE": "team"}
    found = resolve(None, None, None, None, insecure=False, environ=environ)
    assert (found.target, found.namespace) == ("unix:/run/m.sock", "team")
    found = resolve("localhost:1", "mine", None, None, insecure=False, environ=environ)
    assert (found.target, found.namespace) == ("localhost:1", "mine")
    found = resolve(None, None, None, None, insecure=False, environ={})
    assert (found.target, found.namespace, found.token.metadata()) == ("127.0.0.1:7450", "default", None)


@pytest.mark.parametrize(
    "target, local",
    [
        ("127.0.0.1:7450", True),
        ("localhost:7450", True),
        ("dns:///localhost:7450", True),
        ("unix:/run/m.sock", True),
        ("unix:relative.sock", True),
        ("[::1]:7450", True),
        ("milepost.internal:7450", False),
        ("10.0.0.1:7450", False),
        ("[2001:db8::1]:7450", False),
        ("dns:///milepost:7450", False),
        ("localhost.evil.example:7450", False),
    ],
)
def test_only_this_machine_is_local(target: str, local: bool) -> None:
    assert is_local(target) is local


def test_a_token_does_not_travel_in_clear_text() -> None:
    with pytest.raises(ValueError, match="clear text") as caught:
        Client("milepost.internal:7450", token="secret-4711")
    assert "secret-4711" not in str(caught.value)
    Client("milepost.internal:7450", token="secret-4711", tls=TLS())
    Client("milepost.internal:7450", token="secret-4711", insecure=True)
    Client("127.0.0.1:7450", token="secret-4711")


def test_a_malformed_token_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        Client(token="secret 4711\n")
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_shows_no_token_and_cannot_be_pickled(kind: type[Client] | type[AsyncClient]) -> None:
    client = kind("127.0.0.1:1", token="secret-4711")
    assert repr(client) == f"{kind.__name__}('127.0.0.1:1', namespace='default')"
    assert "4711" not in repr(client._endpoint)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(client)


@pytest.mark.parametrize(
    "target, said",
    [
        ("http://127.0.0.1:7450", "without http://"),
        ("https://milepost.internal:7450", "without https://"),
        ("localhost", "write host:port"),
        ("[::1]", "write host:port"),
        (":7450", "write host:port"),
        ("", "write host:port"),
        ("localhost:", "write host:port"),
        ("unix:", "write host:port"),
        ("127.0.0.1:70000", "no port of 1 to 65535"),
        ("127.0.0.1:0", "no port of 1 to 65535"),
    ],
)
def test_a_target_that_is_no_address_is_told_at_once(target: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Client(target)


@pytest.mark.parametrize(
    "target",
    ["localhost:7450", "[::1]:7450", "dns:///milepost:7450", "unix:0", "unix:///run/m.sock", "milepost:grpc"],
)
def test_a_target_that_grpc_knows_is_taken(target: str) -> None:
    assert Client(target).target == target


def test_an_empty_name_does_not_become_the_default() -> None:
    """A script with a variable that is not set must not work on the workflows of another tenant."""
    environ = {"MILEPOST_TARGET": "", "MILEPOST_NAMESPACE": ""}
    with pytest.raises(ValueError, match="namespace is empty"):
        resolve(None, "", None, None, insecure=False, environ=environ)
    found = resolve(None, None, None, None, insecure=False, environ=environ)
    assert (found.target, found.namespace) == ("127.0.0.1:7450", "default")


def test_half_a_client_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        TLS(cert_file="client.pem")


def test_a_client_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        Client(timeout_s=0)
    assert RetryPolicy() == RetryPolicy()
