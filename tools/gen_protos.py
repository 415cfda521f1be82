"""Generate the Python wire code from `protos/` into `client/`, or check that it is current.

Run by `make gen` and `make check` in an environment of its own (`.venv-gen`), because the generator is
pinned to an old release: generated code refuses a runtime older than its generator. Proto package = Python
package, so the imports protoc writes resolve as they are and nothing is rewritten. `__init__.py` files are
left alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGES = ROOT / "client"
GENERATOR_VERSIONS = {"grpcio-tools": "1.76.", "mypy-protobuf": "5.1."}


def main() -> int:
    """Write the generated files, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not current")
    check: bool = parser.parse_args().check

    require_generators()
    protos = sorted(PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        generate(protos, Path(scratch))
        wanted = {path.relative_to(scratch): path.read_bytes() for path in Path(scratch).rglob("*.py*")}
    found = {path.relative_to(PACKAGES): path.read_bytes() for path in generated_files()}

    if not check:
        apply(wanted, found)
        return 0
    problems = [f"{name}: missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name}: extra, no proto makes it" for name in found.keys() - wanted.keys()]
    problems += [f"{name}: not current" for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    for problem in sorted(problems):
        print(f"{PACKAGES.name}/{problem}", file=sys.stderr)
    if problems:
        print("The generated wire code does not match protos/. Run: make gen", file=sys.stderr)
    return 1 if problems else 0


def require_generators() -> None:
    """Stop where another generator is installed: its output would differ and demand newer runtimes."""
    for name, prefix in GENERATOR_VERSIONS.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        if not version.startswith(prefix):
            sys.exit(f"{name} {prefix}* is needed, here is: {version}. Run: make gen")


def generate(protos: list[Path], out: Path) -> None:
    """Write messages, services and their stubs for `protos` below `out`."""
    if not protos:
        return
    # The stub plugins lie beside this interpreter, which need not be on PATH. By default they type one Stub
    # class by overload for grpc.Channel and grpc.aio.Channel: that lets the blocking client be derived from
    # the async one.
    plugin = Path(sys.executable).parent
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"),
        *(f"--plugin={name}={plugin / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        *(f"--{kind}_out={out}" for kind in ("python", "grpc_python")),
        *(f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")),
        *(str(proto.relative_to(PROTOS)) for proto in protos),
    ]
    # A fixed hash seed, so that no set order can reach the output.
    status = subprocess.run(command, check=False, env={**os.environ, "PYTHONHASHSEED": "0"}).returncode
    if status:
        sys.exit(status)


def generated_files() -> list[Path]:
    """List what the generator owns in the tree, whether or not a proto still makes it."""
    return sorted(
        path
        for pattern in ("*_pb2.py*", "*_pb2_grpc.py*")
        for path in PACKAGES.rglob(pattern)
        if path.suffix in {".py", ".pyi"}
    )


def apply(wanted: dict[Path, bytes], found: dict[Path, bytes]) -> None:
    """Make the tree hold exactly `wanted`, touching only files that differ."""
    for name, content in wanted.items():
        if found.get(name) != content:
            target = PACKAGES / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            print(f"wrote {PACKAGES.name}/{name}")
    for name in found.keys() - wanted.keys():
        (PACKAGES / name).unlink()
        print(f"removed {PACKAGES.name}/{name}")


if __name__ == "__main__":
    sys.exit(main())
