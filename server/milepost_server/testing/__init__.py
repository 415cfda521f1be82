"""What any storage engine is held to: a contract told by examples, and a model that random histories are compared with.

An engine's own tests are a subclass of `engine_contract.EngineContract` and one of `engine_machine.EngineMachine`.
Needs pytest and hypothesis (the project's test group); nothing that serves imports it.
"""

import pytest

# The contract's asserts are to be explained like those of any test file.
pytest.register_assert_rewrite("milepost_server.testing.contracts", "milepost_server.testing.engine_machine")
