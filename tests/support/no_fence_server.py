"""The server with a seeded defect: it grants leases and asks nobody for a token.

Run as `python -m tests.support.no_fence_server serve …`. It exists to prove that the tests of fencing would notice.
"""

from __future__ import annotations

import os
from typing import Any

from milepost_server import cli, rules


def breach() -> None:
    """Let every change pass."""
    patched: Any = rules
    patched.check_lease = lambda lease, remaining_ms, token, workflow_id: rules.LeaseUse.NONE


if __name__ == "__main__":
    # The defect is seeded in this process, so the engine must be here too.
    os.environ["MILEPOST_SERVER__ENGINE_PROCESS"] = "false"
    breach()
    cli.main()
