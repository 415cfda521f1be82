"""The public API type-checks as programs use it, and wrong uses do not.

`warn_unused_ignores`, part of strict, turns a mark on a line that is no error into one.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
@pytest.mark.parametrize("file", ["api.py", "workflows.py"])
def test_the_api_type_checks_as_it_is_used(file: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--cache-dir", str(tmp_path)]
    done = subprocess.run([*command, f"tests/typing/{file}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
