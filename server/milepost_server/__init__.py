"""The milepost server: one durable authority for workflow checkpoints.

A gRPC front (`grpc_api`) over the operations (`service`), which let pure `rules` decide and a storage engine
(`storage`) carry out each command as one transaction. `cli` alone assembles these parts. The client package
`milepost` imports nothing from here; the two share only the generated wire types in `milepost.v1`.
"""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Looked up when asked for: the library for it is larger than the storage process's own code.
    from importlib import metadata  # noqa: PLC0415 - see above

    return metadata.version("milepost")
