"""Check what no other tool looks at: required files, paths of one machine, module docstrings.

Reads what git tracks or would track, so a file is looked at before it is committed. Part of `make check`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = (
    ".ci/run",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "buf.yaml",
    "pyproject.toml",
)
GENERATED = (
    "client/milepost/v1/",
    "client/milepost/admin/v1/",
    "client/milepost/_sync/",
    "tests/unit/client/_sync/",
)
# An absolute path below somebody's home, work or scratch folder means nothing on another machine. The look
# at what precedes the slash keeps URLs and relative paths out.
MACHINE_PATH = re.compile(r"(?<![\w.})$*~-])/(?:home|root|work|tmp|Users)/")


def main() -> int:
    """Print each problem on a line; return the exit status."""
    files = tracked_files()
    problems = [f"{name}: missing, every checkout has it" for name in REQUIRED if not (ROOT / name).is_file()]
    for name in files:
        problems += file_problems(name)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def tracked_files() -> list[str]:
    """Return the paths git tracks, and those it would after `git add`, without the ones deleted meanwhile."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()})


def file_problems(name: str) -> list[str]:
    """Return what is wrong with one file; binary files are not looked into."""
    try:
        text = (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    problems = [
        f"{name}:{number}: path of one machine: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    if name.endswith(".py") and not name.startswith(GENERATED) and not ast.get_docstring(ast.parse(text, name)):
        problems.append(f"{name}:1: no module docstring; say what the file is for")
    return problems


if __name__ == "__main__":
    sys.exit(main())
