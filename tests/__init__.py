"""The test suite. A package, so that helpers are imported as `tests.support.x` and no other `tests` wins."""
