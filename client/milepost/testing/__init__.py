"""What tests of your own workflows need: a real server to kill and restart, and a clock that stands still.

    from milepost import Client
    from milepost.testing import local_server

    with local_server() as server, Client(server.target) as client:
        saved = client.save("w1", state={"x": 1}, after="start")
        server.kill()
        server.restart()
        assert client.load("w1").state == {"x": 1}

Beside it: `milepost.testing.pytest_plugin` (fixtures, by `-p milepost.testing.pytest_plugin`) and
`milepost.testing.store_contract` (the suite that every checkpoint store passes). Those two import pytest.
"""

from milepost.testing._clock import FakeClock
from milepost.testing._local_server import LocalServer, LocalServerError, local_server

__all__ = ["FakeClock", "LocalServer", "LocalServerError", "local_server"]
