"""The server with a seeded defect: any token that was ever granted passes for that of the newest lease.

Run as `python -m tests.support.any_token_server serve …`. It exists to prove that the test of frozen workers would
notice.
"""

from __future__ import annotations

import os
from typing import Any

from milepost_server import cli, rules
from milepost_server.model import LeaseRow


def breach() -> None:
    """Take whatever token a change brings for the lease's own."""
    check = rules.check_lease

    def check_lease(lease: LeaseRow | None, remaining_ms: int, token: int, workflow_id: str) -> rules.LeaseUse:
        return check(lease, remaining_ms, lease.token if token and lease is not None else token, workflow_id)

    patched: Any = rules
    patched.check_lease = check_lease


if __name__ == "__main__":
    # The defect is seeded in this process, so the engine must be here too.
    os.environ["MILEPOST_SERVER__ENGINE_PROCESS"] = "false"
    breach()
    cli.main()
