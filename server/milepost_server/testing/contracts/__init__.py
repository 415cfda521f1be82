"""The engine contract in parts: each a class of tests that `engine_contract.EngineContract` inherits."""
