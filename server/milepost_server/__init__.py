"""The milepost server: one durable authority for workflow checkpoints.

A gRPC front (`grpc_api`) over the operations (`service`), which let pure `rules` decide and a storage engine
(`storage`) carry out each command as one transaction. `cli` alone assembles these parts. The client package
`milepost` imports nothing from here; the two share only the generated wire types in `milepost.v1`.
"""

from importlib import metadata

__all__ = ["__version__"]

__version__: str = metadata.version("milepost")
