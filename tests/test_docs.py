"""The documentation is true: what it shows is run, what it names exists, what it tabulates is what the code has.

Python snippets and console sessions of a page run in their order against a server of the page's own; only the address
is substituted. A snippet that stands in an example verbatim is an excerpt, which `test_examples` runs. Tables are
compared with the code in both directions, so that neither can gain or lose a row alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import pytest
from google.rpc import code_pb2

import milepost
from milepost import MilepostError, Step, Workflow
from milepost.cli.app import cli as client_cli
from milepost.runner.options import BindOptions
from milepost.runner.settings import Settings
from milepost.runner.step import StepOptions
from milepost.testing import LocalServer, local_server
from milepost.v1 import checkpoint_store_pb2, error_reason_pb2
from milepost_server.cli import STORAGE_GRACE_S
from milepost_server.cli import cli as server_cli
from milepost_server.config import DEFAULT_LISTEN, QueueConfig, ServerConfig, read_config, sections, settings
from milepost_server.grpc_api.addresses import is_private, parse_address
from milepost_server.grpc_api.status import STATUS_CODES
from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.storage import keys
from tests.support.documented import ROOT, metadata_keys, read, reason_comments, rows_of
from tests.support.server_process import ServerProcess

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PROGRAMS = {"milepost": client_cli, "milepost-server": server_cli}
COMMAND_TIMEOUT_S = 60.0
SAID_BY_GRPC = frozenset({"Tls handshake failed"})

VOLATILE = frozenset({"create_time", "grant_time", "update_time", "incarnation", "next_page_token"})
"""Fields whose values differ from run to run."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TEST_NAME = re.compile(r"`((?:server|client|tests)/[\w/]+\.py)::(test_\w+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    return [Block(match[1], match[2]) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


def prose_of(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def is_excerpt(block: Block) -> bool:
    """Tell whether a snippet stands in an example as it is, up to its indentation."""
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob("examples/*.py")]
    forms = [block.text, textwrap.indent(block.text, "    ")]
    return "import" not in block.text and any(form in text for form in forms for text in texts)


def number(text: str) -> float:
    return float(text.replace(",", "").replace("_", ""))


# What is shown is run.


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search(page.read_text("utf-8"))], ids=name_of)
def test_snippets_and_sessions_do_what_they_show(page: Path, tmp_path: Path) -> None:
    blocks = blocks_of(page)
    with local_server() as server:
        for block, following in zip(blocks, [*blocks[1:], Block("", "")], strict=True):
            if block.language == "python" and not is_excerpt(block):
                # A session of several runs is checked by `test_examples`.
                is_output = following.language == "text" and not following.text.startswith("$ ")
                shown = following.text if is_output else None
                check_snippet(block.text, shown, server, tmp_path)
            elif block.language == "console":
                for command, shown in commands_of(block.text):
                    check_command(command, shown, server, tmp_path)
            elif block.language == "toml":
                check_config(block.text, tmp_path)
            elif block.language in {"ini", "yaml", "dockerfile"}:
                check_deployment(block.text, tmp_path / block.language)
            else:
                assert block.language in {"python", "text"}, f"no test knows what to do with ```{block.language}"


def check_snippet(code: str, shown: str | None, server: LocalServer, folder: Path) -> None:
    assert DEFAULT_LISTEN in code or "Client" not in code
    result = run([sys.executable, "-W", "error", "-c", code.replace(DEFAULT_LISTEN, server.target)], server, folder)
    assert result.returncode == 0, result.stderr
    if shown is not None:
        assert result.stdout == shown


def commands_of(session: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a session, each with the output that is shown below it."""
    for part in re.split(r"^\$ ", join_lines(session), flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def join_lines(text: str) -> str:
    return re.sub(r"\\\n\s*", "", text)


def check_command(command: str, shown: str, server: LocalServer, folder: Path) -> None:
    program, *arguments = shlex.split(command.replace(DEFAULT_LISTEN, server.target))
    assert program in {"grpcurl", *PROGRAMS}, f"the tests do not run {program}"
    result = run([str(Path(sys.executable).parent / program), *arguments], server, folder)
    output = result.stdout + result.stderr
    if program != "grpcurl":
        # `diff` exits like diff(1).
        assert result.returncode in ({0, 1} if arguments[0] == "diff" else {0}), output
        assert not shown
    elif output.startswith("{"):
        assert is_like(json.loads(output), json.loads(shown)), f"{command}\n{output}"
    else:
        assert output.split() == shown.split(), command


def is_like(found: object, shown: object, key: str = "") -> bool:
    """Tell whether an answer is the one that is shown, but for what differs from run to run."""
    if isinstance(found, dict) and isinstance(shown, dict):
        found = {snake_case(name): value for name, value in found.items()}
        return found.keys() == shown.keys() and all(is_like(found[name], shown[name], name) for name in shown)
    if isinstance(found, list) and isinstance(shown, list):
        return len(found) == len(shown) and all(is_like(*pair) for pair in zip(found, shown, strict=True))
    if key in VOLATILE or (isinstance(found, str) and isinstance(shown, str) and UUID.fullmatch(found)):
        return type(found) is type(shown) and (key in VOLATILE or bool(UUID.fullmatch(str(shown))))
    return found == shown


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", lambda match: "_" + match[1].lower(), name)


def check_config(text: str, folder: Path) -> None:
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    assert msgspec.to_builtins(read_config(file=file)) != msgspec.to_builtins(ServerConfig())
    assert tomllib.loads(text)


def check_deployment(text: str, data_dir: Path) -> None:
    """Start the server as a unit, an image or a manifest does, but for the directory and the address."""
    (line,) = re.findall(r"^.*\bserve\b.*$", text, re.MULTILINE)
    arguments = re.split(r"\bserve\b", re.sub(r"[\[\],\"]", " ", line))[1].split()
    listen, directory = (take(arguments, flag) for flag in ("--listen", "--data-dir"))
    assert is_private(parse_address(listen)) or "--insecure" in arguments
    assert len(Path(directory).parts) > 2, "a volume may hold a lost+found, so the store is a folder in it"
    for seconds in re.findall(r"(?:TimeoutStopSec=|terminationGracePeriodSeconds: )(\d+)", text):
        config = ServerConfig()
        assert int(seconds) > config.drain_delay_s + config.drain_grace_s + STORAGE_GRACE_S
    with ServerProcess(data_dir, arguments=arguments) as server:
        assert server.stop() == 0, server.stderr


def take(arguments: list[str], flag: str) -> str:
    """Remove a flag and its value; return the value."""
    at = arguments.index(flag)
    del arguments[at]
    return arguments.pop(at)


def run(command: Sequence[str], server: LocalServer, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={"MILEPOST_TARGET": server.target, "PATH": str(Path(sys.executable).parent), "PYTHONPATH": ""},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def test_pages_do_not_meet_in_one_store() -> None:
    """Whoever reads several pages runs their snippets against one server, where an id is new once."""
    owners: dict[str, str] = {}
    for page in PAGES:
        snippets = "".join(block.text for block in blocks_of(page) if block.language in {"python", "console"})
        for workflow_id in set(re.findall(r"\b[a-z]+-\d+\b(?=[\s\"])", snippets)):
            assert owners.setdefault(workflow_id, name_of(page)) == name_of(page), workflow_id
    assert len(owners) > 5


def test_the_first_snippet_is_the_quickstart() -> None:
    first = next(block for block in blocks_of(ROOT / "README.md") if block.language == "python")

    assert read("examples/quickstart.py").endswith(first.text)


# What is named exists.


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose_of(page)):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert path.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors_of(path), link


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_is_named_exists(page: Path) -> None:
    for file, test in TEST_NAME.findall(page.read_text(encoding="utf-8")):
        assert re.search(rf"\bdef {test}\(", read(file)), f"{file}::{test}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=name_of)
def test_every_path_that_is_named_exists(page: Path) -> None:
    for code in CODE.findall(prose_of(page)):
        path = code.partition("::")[0]
        if re.fullmatch(r"(client|server|tests|tools|docs|examples|protos)/[\w./]*", path):
            assert (ROOT / path).exists(), code


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for code in [*CODE.findall(prose_of(page)), *re.findall(r"^ {4}(\S.*)$", prose_of(page), re.MULTILINE)]:
        if (match := re.match(r"make(?: -k| PYTHON=\S+)? ([a-z-]+)", code)) is not None:
            assert match[1] in targets, code
        if (match := re.match(r"(milepost|milepost-server) (?!listening)([a-z]+)\b(.*)", code)) is not None:
            check_usage(*match.groups())


def test_every_recipe_of_make_is_sound_shell() -> None:
    """A comma inside of an argument of make's `call` cuts it short, which nobody sees before the target is run."""
    targets = re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE)
    recipes = subprocess.check_output(["make", "-nB", *targets], cwd=ROOT, text=True, timeout=60)
    checked = subprocess.run(["sh", "-n"], input=recipes, capture_output=True, text=True, timeout=60, check=False)
    assert "langgraph_savers" in recipes
    assert checked.returncode == 0, checked.stderr


def check_usage(program: str, name: str, arguments: str) -> None:
    group = PROGRAMS[program]
    command = group.commands.get(name)
    assert command is not None, f"{program} {name}"
    if isinstance(command, click.Group) and arguments.strip():
        name, _, arguments = arguments.strip().partition(" ")
        command = command.commands[name]
    known = {
        flag for parameter in [*command.params, *group.params] for flag in [*parameter.opts, *parameter.secondary_opts]
    }
    for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", arguments):
        assert flag in known, f"{program} {name} {flag}"


@pytest.mark.parametrize("program, group", PROGRAMS.items(), ids=list(PROGRAMS))
def test_every_command_is_documented(program: str, group: click.Group) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in group.commands:
        assert f"{program} {name}" in text, name


def test_what_is_quoted_to_be_looked_for_is_said() -> None:
    """Symptoms and lines of the log are words of the code, reasons are reasons, and errors are errors."""
    source = "".join(path.read_text("utf-8") for root in ("client", "server") for path in (ROOT / root).rglob("*.py"))
    cells = [line.split(" | ")[0] for line in read("docs/troubleshooting.md").splitlines() if line.startswith("| ")]
    alarms = re.findall(r"\| (?:log|clients).*?: (.*?) \|", read("docs/deployment.md"))
    quoted = [code for text in [*cells, *alarms] for code in CODE.findall(text)]
    assert len(quoted) > 30
    for code in quoted:
        if code.isupper():
            assert code in STATUS_CODES, code
        elif code.endswith("Error"):
            assert issubclass(getattr(milepost, code), MilepostError), code
        else:
            assert code in source or code in SAID_BY_GRPC, code


# What is tabulated is what the code has.


def test_every_limit_is_documented_as_it_is() -> None:
    rows = rows_of("docs/limits.md", "limit", "default", "unit", "error", "what it bounds")
    limits = {name: getattr(DEFAULT_LIMITS, name) for name in Limits.__struct_fields__}
    queue = {name: getattr(QueueConfig(), name) for name in QueueConfig.__struct_fields__}

    assert {row[0]: number(row[1]) for row in rows} == limits | queue
    assert len(rows) == len(limits) + len(queue)
    for name, _, unit, error, _ in rows:
        assert error in {"-", *STATUS_CODES}, name
        stated = re.search(r"_(bytes|rows|ms|s)(?:_max|_min)?$", name)
        assert stated is None or unit == {"ms": "milliseconds", "s": "seconds"}.get(stated[1], stated[1]), name


def test_every_setting_is_documented_as_it_is() -> None:
    rows = {row[0]: row[1] for row in rows_of("docs/operations.md", "setting", "default", "what it is")}

    assert list(rows) == [setting.name for setting in settings()]
    for setting in settings():
        default = ", ".join(setting.default) if isinstance(setting.default, tuple) else str(setting.default)
        assert rows[setting.name] == (default.lower() if setting.kind is bool else default), setting.name
    assert all(f"[{section}]" in read("docs/operations.md") for section in sections())


def test_every_option_of_a_runner_is_documented_as_it_is() -> None:
    rows = {row[0]: row[1] for row in rows_of("docs/workflows.md", "option", "default", "what it is")}
    defaults = {one.name: getattr(Settings(), one.name) for one in dataclasses.fields(Settings)}

    assert list(rows) == list(defaults)
    assert {name: f"{value:g}" if type(value) is float else str(value) for name, value in defaults.items()} == {
        **rows,
        "holder": defaults["holder"],
    }


def test_every_option_of_a_step_is_documented_as_it_is() -> None:
    rows = {row[0]: row[1] for row in rows_of("docs/workflows.md", "option of a step", "default", "what it is")}
    defaults = {one.name: one.default for one in dataclasses.fields(Step) if one.name in rows}

    assert ["id", *rows] == list(StepOptions.__annotations__)
    assert rows == {
        **{name: f"{value:,}" if type(value) is int else str(value) for name, value in defaults.items()},
        "retry": "one attempt",
    }


def test_help_tells_every_option() -> None:
    """Whoever has the package and no documentation reads of them with `help`, or in an editor."""
    for method, options in ((Workflow.step, StepOptions), (Workflow.bind, BindOptions)):
        told = re.findall(r"^        (\w+): .*[.;]", method.__doc__ or "", re.MULTILINE)
        assert [name for name in told if name in options.__annotations__] == list(options.__annotations__)


def test_every_error_is_documented_as_it_is() -> None:
    rows = rows_of("docs/protocol.md", "reason", "code", "metadata", "what to do")
    reasons = [name for name, _ in error_reason_pb2.ErrorReason.items() if not name.endswith("UNSPECIFIED")]

    assert [row[0] for row in rows] == reasons
    assert {row[0]: row[1] for row in rows} == {
        reason: code_pb2.Code.Name(code) for reason, code in STATUS_CODES.items()
    }
    assert {row[0]: row[2].strip("-") for row in rows} == {
        reason: ", ".join(keys_of) for reason, keys_of in metadata_keys().items()
    }
    assert all(row[3] for row in rows)
    codes = {reason: re.split(r"[.,]", comment)[0] for reason, comment in reason_comments().items()}
    assert codes == {row[0]: row[1] for row in rows}


def test_every_error_is_named_by_the_calls_that_it_comes_from() -> None:
    source = read("protos/milepost/v1/checkpoint_store.proto")
    service = source[source.index("// The durable authority") : source.index("\nenum ")]

    assert [reason for reason in STATUS_CODES if not re.search(rf"\b{reason}\b", service)] == []


def test_every_call_is_documented() -> None:
    service = checkpoint_store_pb2.DESCRIPTOR.services_by_name["CheckpointStore"]

    assert [row[0] for row in rows_of("docs/protocol.md", "call", "does")] == [
        method.name for method in service.methods
    ]


def test_every_table_of_the_store_is_documented() -> None:
    rows = rows_of("docs/storage-format.md", "letter", "table", "owner", "rest of the key", "row")

    assert {row[0].encode(): row[1] for row in rows} == keys.TABLE_NAMES


@pytest.mark.parametrize("folder", ["server/milepost_server", "client/milepost"])
def test_the_code_map_has_every_module(folder: str) -> None:
    text = read("docs/architecture.md")
    section = text[text.index(f"### `{folder}`") :].split("\n##", 2)[0]
    named = {code for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for code in CODE.findall(row)}
    modules = {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob("*.py")}

    for name in named:
        assert (ROOT / folder / name).exists(), name
    folders = tuple(name for name in named if name.endswith("/"))
    unnamed = {
        each for each in modules - named if not each.startswith(folders) and not Path(each).name.startswith("__")
    }
    assert unnamed == set(), "each module has a line in docs/architecture.md"


def test_the_readme_is_short() -> None:
    assert 120 <= len(read("README.md").splitlines()) <= 180
