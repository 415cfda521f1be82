"""In-memory stores: the methods, rules and errors of the clients without a server.

`InMemoryStore` stands in for `Client`, `AsyncInMemoryStore` for `AsyncClient`.
`milepost.testing.store_contract` is the suite that stores and clients both pass.
"""

from milepost._async.memory import AsyncInMemoryStore
from milepost._sync.memory import InMemoryStore

__all__ = ["AsyncInMemoryStore", "InMemoryStore"]
