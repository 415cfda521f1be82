# Generated from client/milepost/_async/__init__.py by tools/unasync.py. Do not edit.
"""One half of the client: `_async` is written, `_sync` is made from it by tools/unasync.py."""
