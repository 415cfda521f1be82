"""Write the golden store and the golden wire bytes of the present format: `python -m tests.compat.write_golden`.

Run once for each format that is released, and never again for the same one: what it wrote is what users have.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.testing.builders import Store, record
from tests.compat.golden_content import FORMATS, LARGE, SAVE_REQUEST, SAVE_RESPONSE, wire_path

GOLDEN = Path(__file__).parent / "golden"


def write_store(folder: Path) -> None:
    engine = LmdbEngine.open(folder, low_disk_bytes=0)
    store = Store(engine, lambda engine, what: engine.statistics()[what])
    try:
        store.save("chain", "a", {"x": 1, "large": LARGE}, current_step="first", labels={"team": "red"})
        store.save("chain", "b", {"y": [2]}, current_step="second", base_checkpoint_id="a", expected_head="a")
        store.append("chain", "b", record("task"))
        store.save("chain", "s", {"z": None}, scope="child")
        store.save("n" * 1_000, "c", {})
        store.fork("chain", "forked")
        store.save("gone", "d", {"x": 1})
        store.delete_workflow("gone")
    finally:
        engine.close()
    for name in ("LOCK", "store/lock.mdb"):
        (folder / name).unlink()


def main() -> None:
    folder = GOLDEN / FORMATS[-1]
    if folder.exists():
        shutil.rmtree(folder)
    write_store(folder / "data")
    wire_path(FORMATS[-1], "save_request").write_bytes(SAVE_REQUEST.SerializeToString(deterministic=True))
    wire_path(FORMATS[-1], "save_response").write_bytes(SAVE_RESPONSE.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
