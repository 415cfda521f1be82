"""What was measured, against what was aimed at: a table for people and JSON for comparing two runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured figure. Figures are ratios of runs that took turns in one invocation, or sizes."""

    benchmark: str
    name: str
    value: float
    """The median."""
    unit: str
    target: float | None
    """`None` for a figure that only tells what others are to be read against."""
    sense: Literal["at least", "at most"]
    low: float | None = None
    """The lowest and the highest of the single runs, where there were several."""
    high: float | None = None
    detail: str = ""

    @property
    def is_met(self) -> bool:
        """The target is reached, or there is none."""
        if self.target is None:
            return True
        return self.value >= self.target if self.sense == "at least" else self.value <= self.target


def ratio(
    benchmark: str,
    name: str,
    runs: Sequence[float],
    yardstick: Sequence[float],
    *,
    target: float,
    sense: Literal["at least", "at most"],
    detail: str = "",
) -> Figure:
    """Return the ratio of the medians of two series of runs that took turns; the spread is that of neighbours."""
    single = [run / other for run, other in zip(runs, yardstick, strict=True)]
    value = statistics.median(runs) / statistics.median(yardstick)
    return Figure(benchmark, name, value, "x", target, sense, min(single), max(single), detail)


def machine_facts(directory: Path) -> dict[str, object]:
    """Return what a reader needs to know of the machine."""
    packages = ("grpcio", "protobuf", "lmdb", "uvloop", "msgspec")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file_system": _file_system(directory),
        "python": platform.python_version(),
        "event_loop": "uvloop, in the server and in the no-op server",
        "load_average_before": os.getloadavg()[0],
        **{name: metadata.version(name) for name in packages},
    }


def _file_system(directory: Path) -> str:
    """Return the type of the file system that a directory is on."""
    resolved = directory.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if resolved.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def show(figures: Sequence[Figure], facts: Mapping[str, object]) -> None:
    """Print the table."""
    table = Table(title="milepost: measured against targets", title_justify="left")
    table.add_column("figure")
    table.add_column("median", justify="right")
    table.add_column("min to max", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    table.add_column("detail", overflow="fold")
    for figure in figures:
        sign = "≥" if figure.sense == "at least" else "≤"
        spread = "" if figure.low is None or figure.high is None else f"{figure.low:.2f} to {figure.high:.2f}"
        goal = "" if figure.target is None else f"{sign} {figure.target:.2f}"
        verdict = "" if figure.target is None else "[green]pass[/]" if figure.is_met else "[red]MISS[/]"
        table.add_row(
            f"{figure.benchmark}: {figure.name}",
            f"{figure.value:.2f} {figure.unit}".rstrip(),
            spread,
            goal,
            verdict,
            figure.detail,
        )
    console = Console() if os.isatty(1) else Console(width=170)
    console.print(table)
    missed = sum(not figure.is_met for figure in figures)
    console.print(f"{len(figures)} figures, {missed} missed. " + ", ".join(f"{key} {facts[key]}" for key in facts))
    if facts["file_system"] in {"tmpfs", "ramfs", "overlay"}:
        console.print(
            f"[yellow]The stores were on {facts['file_system']}: commits cost nothing there. Name a --dir.[/]"
        )


def write_json(path: Path, figures: Sequence[Figure], facts: Mapping[str, object]) -> None:
    """Write the figures to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": dict(facts), "figures": [{**asdict(figure), "is_met": figure.is_met} for figure in figures]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
