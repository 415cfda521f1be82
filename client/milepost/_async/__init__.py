"""One half of the client: `_async` is written, `_sync` is made from it by tools/unasync.py."""
