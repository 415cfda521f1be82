"""What tests of your own workflows need: a real server to kill and restart, runs that die where you say, a fake clock.

    from milepost import Client
    from milepost.testing import local_server

    with local_server() as server, Client(server.target) as client:
        saved = client.save("w1", state={"x": 1}, after="start")
        server.kill()
        server.restart()
        assert client.load("w1").state == {"x": 1}

`with crash_after("charge"): …` and `crash_before_save` make a run die in the process of the test; `bind_to_clock` runs
workflows on a `FakeClock`, so that their pauses take no time.

Beside it: `milepost.testing.pytest_plugin` (fixtures, by `-p milepost.testing.pytest_plugin`) and
`milepost.testing.store_contract` (the suite that every checkpoint store passes). Those two import pytest.
"""

from milepost.testing._clock import FakeClock
from milepost.testing._crash import SimulatedCrash, crash_after, crash_before_save
from milepost.testing._local_server import LocalServer, LocalServerError, local_server
from milepost.testing._runs import bind_to_clock

__all__ = [
    "FakeClock",
    "LocalServer",
    "LocalServerError",
    "SimulatedCrash",
    "bind_to_clock",
    "crash_after",
    "crash_before_save",
    "local_server",
]
