"""A store as `save_history.check` reads it: through the engine while no server runs, or through a client."""

from __future__ import annotations

import json

import zstandard

from milepost import Client, WorkflowNotFoundError
from milepost_server.errors import NotFoundError
from milepost_server.model import LoadedCheckpoint, Value
from milepost_server.storage.port import Engine
from tests.support.fault_engines import store_on
from tests.support.save_history import Content, Place


class EngineView:
    """Reads an open engine. All values are json, of the codec that the client has by default."""

    def __init__(self, engine: Engine) -> None:
        self._store = store_on(engine)

    def places(self, workflow_id: str) -> list[Place]:
        """See `StoreView`."""
        places: list[Place] = []
        position: int | None = None
        while True:
            try:
                page = self._store.page(workflow_id, scope="", newest_first=False, position=position)
            except NotFoundError:
                return places
            places += [
                Place(loaded.row.sequence, loaded.row.checkpoint_id, loaded.row.parent_id)
                for loaded in page.checkpoints
            ]
            position = page.position
            if position is None:
                return places

    def head(self, workflow_id: str) -> str:
        """See `StoreView`."""
        try:
            return self._store.head(workflow_id)
        except NotFoundError:
            return ""

    def content(self, workflow_id: str, checkpoint_id: str) -> Content:
        """See `StoreView`."""
        loaded: LoadedCheckpoint = self._store.load(workflow_id, checkpoint_id)
        assert loaded.entries is not None
        return Content(
            {key: _decode(value) for key, value in loaded.entries.items()},
            loaded.steps,
            {(each.task_id, each.index): _decode(each.value) for each in loaded.records},
        )


def _decode(value: Value) -> object:
    payload = value.payload
    if value.compression:
        payload = zstandard.ZstdDecompressor().decompress(payload)
    return json.loads(payload)


class ClientView:
    """Reads through a running server."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def places(self, workflow_id: str) -> list[Place]:
        """See `StoreView`."""
        try:
            found = list(self._client.list(workflow_id, newest_first=False, page_size=1000))
        except WorkflowNotFoundError:
            return []
        return [Place(each.sequence, each.checkpoint_id, each.parent_id) for each in found]

    def head(self, workflow_id: str) -> str:
        """See `StoreView`."""
        try:
            return self._client.load(workflow_id, with_state=False).checkpoint_id
        except WorkflowNotFoundError:
            return ""

    def content(self, workflow_id: str, checkpoint_id: str) -> Content:
        """See `StoreView`."""
        loaded = self._client.load(workflow_id, checkpoint_id=checkpoint_id)
        records = {(each.task_id, each.index): each.value for each in loaded.records}
        return Content(loaded.state, loaded.completed_steps, records)
