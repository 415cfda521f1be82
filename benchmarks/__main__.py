"""`python -m benchmarks`: measure, print a table, write JSON.

python -m benchmarks                     everything, a few minutes
python -m benchmarks --quick             smaller and coarser, within a minute
python -m benchmarks --only throughput   one of them; repeatable
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import file_size, latency, memory, report, runner, scaling, throughput, workflows
from benchmarks.http2 import CallFailedError
from benchmarks.options import Options
from benchmarks.processes import ServerError
from benchmarks.report import Figure

BENCHMARKS: dict[str, Callable[[Options], Iterator[Figure]]] = {
    module.NAME.replace(" ", "-"): module.measure
    for module in (throughput, latency, scaling, file_size, memory, workflows, runner)
}
DEFAULT_JSON = Path(__file__).resolve().parent / "results" / "latest.json"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure milepost on this machine, against its targets."
    )
    parser.add_argument("--quick", action="store_true", help="smaller and coarser, within a minute")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="only this one; repeatable")
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="FILE", help="where the figures go")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where stores are made, on a disk")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    arguments = parser.parse_args()
    options = Options(is_quick=arguments.quick, directory=arguments.dir)
    facts = report.machine_facts(arguments.dir or Path(tempfile.gettempdir()))
    figures: list[Figure] = []
    try:
        for name in arguments.only or BENCHMARKS:
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            figures.extend(BENCHMARKS[name](options))
    except (ServerError, CallFailedError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks: interrupted; nothing was written", file=sys.stderr)
        return 130
    report.show(figures, facts)
    report.write_json(arguments.json, figures, facts)
    return 1 if arguments.check and any(not figure.is_met for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
