"""Who may import whom, and where torch, SQL, vessim, process starts and the wall clock may occur: one table.

Read from the syntax of all files, so an import inside a function counts too, and one
under TYPE_CHECKING as well. To add a folder, add its row to `LAYERS`. To allow a
folder something, add it to the row. Everything else fails.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("curtail", "controller", "agent", "nanochat", "rustbpe")

CAPABILITIES = {
    "torch": {"torch"},
    "numpy": {"numpy"},
    "sql": {"sqlite3", "sqlite_utils"},
    "vessim": {"vessim"},
    "http": {"httpx"},
    "http server": {"fastapi", "starlette", "uvicorn", "h11", "anyio"},
    "mdns": {"zeroconf"},
    "tokenizer": {"tiktoken"},
    "crypto": {"cryptography"},
    "processes": {"subprocess", "multiprocessing"},
    "terminal": {"typer", "rich"},
    "parquet": {"pyarrow"},
    "images": {"resvg_py"},
    "yaml": {"yaml"},
    "hub": {"huggingface_hub"},
    "nvml": {"pynvml"},
    "wall clock": set(),  # found as calls, see CLOCK_CALLS
}
"""What a folder may be allowed, and the packages that are it. Every third-party import belongs to one."""

CLOCK_CALLS = {
    "time.time", "time.monotonic", "time.perf_counter", "time.sleep", "datetime.now", "datetime.utcnow", "date.today",
}  # fmt: skip
"""Reading or waiting for the real time past `curtail.system.clock`."""


@dataclass(frozen=True)
class Layer:
    """One row of the table: a package or a module."""

    name: str
    may: frozenset[str] = frozenset()  # capabilities
    not_from: tuple[str, ...] = ()  # earlier layers that it must not import all the same
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # capability -> the only modules that use it


def layer(name: str, *may: str, not_from: tuple[str, ...] = (), **only: tuple[str, ...]) -> Layer:
    return Layer(name, frozenset(may), not_from, {key.replace("_", " "): value for key, value in only.items()})


PROCESS = ("nanochat", "rustbpe")
"""The controller sees of the model only the files below; the agent process sees nothing of it."""

TORCH_FREE = {f"nanochat.{name}" for name in
              ("weights", "delta", "codecs", "tensorfile", "checkpoint", "presets", "manifest", "recipe")}  # fmt: skip
"""What the controller may use of the model: both ends apply bit-identical arithmetic (docs/decisions/001)."""

LAYERS = (  # each may import those above it, and itself
    layer("curtail.errors"),
    layer("curtail.system", "mdns", "wall clock",
          mdns=("curtail.system.mdns",), wall_clock=("curtail.system.clock",)),
    layer("curtail.wire"),
    layer("curtail.security", "http", "crypto"),
    layer("curtail.grid"),
    layer("curtail.policy"),
    layer("curtail.config"),
    layer("curtail.carbon"),
    layer("curtail.plotting", "images", images=("curtail.plotting.png",)),
    layer("curtail.planner"),
    layer("rustbpe", not_from=("curtail",)),
    layer("nanochat", "torch", "numpy", "tokenizer", "parquet", "yaml", "wall clock",
          not_from=("curtail.wire", "curtail.security", "curtail.grid", "curtail.policy", "curtail.config",
                    "curtail.carbon", "curtail.plotting", "curtail.planner"),
          tokenizer=("nanochat.tokenizer",), yaml=("nanochat.core_tasks",), wall_clock=("nanochat.train",)),
    layer("agent.http", "http", not_from=PROCESS),
    layer("agent", "processes", "nvml", not_from=PROCESS, processes=("agent.launcher",),
          nvml=("agent.energy_counters",)),
    layer("agent.job", "torch", "numpy"),
    layer("controller.store", "sql", not_from=("agent",)),
    layer("controller.signals", "http", not_from=("agent",)),
    layer("controller.energy", "vessim", not_from=("agent",), vessim=("controller.energy.simulation",)),
    layer("controller.files", "wall clock", not_from=("agent",), wall_clock=("controller.files.trash",)),
    layer("controller.aggregation", "numpy", "torch", "processes", "wall clock", not_from=("agent",),
          torch=("controller.aggregation.initial_weights",), processes=("controller.aggregation.process",),
          wall_clock=("controller.aggregation.initial_weights",)),
    layer("controller.auth", "crypto", not_from=("agent",)),
    layer("controller.fleet", "processes", not_from=("agent",), processes=("controller.fleet.power_commands",)),
    layer("controller.provision", "processes", not_from=("agent",), processes=("controller.provision.driver",)),
    layer("controller.home", "wall clock", not_from=("agent",), wall_clock=("controller.home.backup",)),
    layer("controller.rounds", "wall clock", not_from=("agent",), wall_clock=("controller.rounds.publish",)),
    layer("controller.ledger", not_from=("agent",)),
    layer("controller.scheduling", not_from=("agent",)),
    layer("controller.service", not_from=("agent",)),
    layer("controller.http", "http server", not_from=("agent",)),
    layer("controller.serve", "http server", not_from=("agent",)),
    layer("curtail.commands", "torch", "numpy", "http", "terminal", "processes", "wall clock", "hub", "yaml"),
    layer("curtail.__main__"),
)  # fmt: skip

OWN_PROCESS = {"controller.aggregation.initial_weights": {"nanochat.gpt"}}
"""Makes version 0 in a process of its own, because building a model needs torch."""

SHARED_COMMANDS = {"curtail.commands.program", "curtail.commands.options"}
COMMANDS_OF_COMMANDS = {
    ("report", "ledger"), ("simulate", "trace"), ("operator", "status"), ("demo", "status"), ("demo", "trace"),
    ("agent", "systemd"), ("controller", "systemd"), ("operator", "ledger"), ("train", "status"),
    ("site", "operator"), ("site", "status"),
}  # fmt: skip
"""Which command's folder may use which other one's."""


@dataclass(frozen=True)
class Import:
    """One import of one module."""

    module: str  # that imports
    target: str  # full name: a module, or a module and a name in it
    line: int
    top: bool  # runs when the module is imported
    typing: bool  # under TYPE_CHECKING: never runs

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_in(module: str, source: str) -> Iterator[Import]:
    def walk(node: ast.AST, top: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, top, typing)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno}: a relative import"
                for alias in child.names:
                    yield Import(module, f"{child.module}.{alias.name}", child.lineno, top, typing)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from walk(child, False, typing)
            else:
                only_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, top, typing or only_typing)

    return walk(ast.parse(source), True, False)


def clock_calls_in(source: str) -> set[str]:
    return {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and (name := ast.unparse(node)) in CLOCK_CALLS
    }


SOURCES = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
ALL = [found for module, source in SOURCES.items() for found in imports_in(module, source)]


def resolve(target: str) -> str | None:
    """The module of ours that `target` names, or None if it is somebody else's."""
    if target.split(".")[0] not in PACKAGES:
        return None
    while target not in MODULES:  # a name in a module, or the compiled one
        target = target.rpartition(".")[0]
    return target


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def row_of(module: str) -> int:
    """Index in LAYERS of the most special layer that holds the module; -1 for the package files above all layers."""
    found = [number for number, one in enumerate(LAYERS) if inside(module, one.name)]
    return max(found, key=lambda number: len(LAYERS[number].name), default=-1)


def wrong_imports(imports: Iterable[Import]) -> list[str]:
    """Imports of our own modules that the table does not allow, each with the reason."""
    wrong = []
    for found in imports:
        target = resolve(found.target)
        if target is None or target in OWN_PROCESS.get(found.module, ()):
            continue
        above, below = row_of(found.module), row_of(target)
        if below > above:
            wrong.append(f"{found}: {LAYERS[below].name} comes after {LAYERS[above].name}")
        elif any(inside(target, one) for one in LAYERS[above].not_from):
            wrong.append(f"{found}: not from {LAYERS[above].name}")
        elif found.module.startswith("controller.") and target.startswith("nanochat.") and target not in TORCH_FREE:
            wrong.append(f"{found}: the controller may use only the torch-free files of nanochat")
    return wrong


def wrong_capabilities(module: str, source: str) -> list[str]:
    """What a module uses that its row does not allow."""
    if (number := row_of(module)) < 0:
        return []
    row, wrong = LAYERS[number], []
    used = {found.target.split(".")[0] for found in imports_in(module, source)}
    kinds = {kind for kind, packages in CAPABILITIES.items() if packages & used}
    if clock_calls_in(source):
        kinds.add("wall clock")
    for kind in sorted(kinds):
        if kind not in row.may or (kind in row.only and module not in row.only[kind]):
            wrong.append(
                f"{module} uses {kind} ({', '.join(sorted(CAPABILITIES[kind] & used or clock_calls_in(source)))})"
            )
    return wrong


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in sorted(edges.get(node, ())):
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def edges_of(imports: Iterable[Import]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for found in imports:
        target = resolve(found.target)
        if target is not None and target != found.module:
            edges.setdefault(found.module, set()).add(target)
    return edges


def test_the_files_are_found() -> None:
    assert {"curtail.wire", "controller.service.service", "agent.join", "nanochat.gpt", "rustbpe"} <= set(MODULES)
    assert set(MODULES) >= TORCH_FREE | set(OWN_PROCESS)


def test_every_module_has_a_row_and_every_row_a_module() -> None:
    roots = {"curtail", "controller", "agent.__init__"}
    assert [module for module in MODULES if row_of(module) < 0 and module not in roots] == []
    assert [one.name for one in LAYERS if not any(inside(module, one.name) for module in MODULES)] == []


def test_imports_point_one_way() -> None:
    assert wrong_imports(ALL) == []


def test_torch_sql_vessim_process_starts_and_the_wall_clock_are_where_the_table_says() -> None:
    assert [line for module, source in SOURCES.items() for line in wrong_capabilities(module, source)] == []


def test_every_third_party_package_belongs_to_a_capability() -> None:
    known = {*PACKAGES, *sys.stdlib_module_names}.union(*CAPABILITIES.values())
    assert [str(found) for found in ALL if found.target.split(".")[0] not in known] == []


def test_there_is_no_circle_of_files() -> None:
    assert circles(edges_of(ALL)) == []


def test_there_is_no_loop_of_folders() -> None:
    """Folders as nodes: the files of a package, without those of its subpackages."""
    folders: dict[str, set[str]] = {}
    for module, targets in edges_of(ALL).items():
        for target in targets:
            a, b = (MODULES[one].parent.relative_to(ROOT).as_posix() for one in (module, target))
            if a != b and "curtail" not in (a, b):  # the version and the errors
                folders.setdefault(a, set()).add(b)
    del folders["curtail/commands"]  # its __init__ lists all commands, which use its two shared modules
    assert circles(folders) == []


def test_commands_use_each_other_only_as_listed() -> None:
    wrong = []
    for found in ALL:
        target = resolve(found.target)
        if not (found.module.startswith("curtail.commands.") and target and target.startswith("curtail.commands.")):
            continue
        ours, theirs = (name.split(".")[2] for name in (found.module, target))
        if ours != theirs and target not in SHARED_COMMANDS and (ours, theirs) not in COMMANDS_OF_COMMANDS:
            wrong.append(str(found))
    assert wrong == []


def test_the_core_needs_the_standard_library_only() -> None:
    """Third-party packages may appear in it inside functions: docs/decisions/008."""
    core = [one.name for one in LAYERS[: [one.name for one in LAYERS].index("rustbpe")]]
    wrong = [
        str(found)
        for found in ALL
        if any(inside(found.module, name) for name in core) and found.top and not found.typing
        and found.target.split(".")[0] not in {*sys.stdlib_module_names, "curtail"}
    ]  # fmt: skip
    assert wrong == []


PLANTED = {
    "a core module imports the controller": ("curtail.policy.rules", "from controller.store import Store"),
    "the policy imports a later core package": ("curtail.policy.rules", "from curtail.carbon import accounting"),
    "the agent imports the controller": ("agent.loop", "from controller.serve import serve"),
    "the controller imports the agent": ("controller.serve", "from agent.join import run"),
    "the agent process imports the job": ("agent.loop", "import agent.job.loop"),
    "the agent process imports the model": ("agent.loop", "def f():\n    from nanochat import weights"),
    "HTTP of the agent imports the rest of it": ("agent.http.client", "from agent import home"),
    "the model imports the wire": ("nanochat.train", "from curtail import wire"),
    "the controller imports torch code of the model": ("controller.rounds.publish", "from nanochat import optim"),
    "the store imports the service": ("controller.store.run", "from controller.service import service"),
    "somebody imports a command": ("controller.serve", "from curtail.commands.status import view"),
}


@pytest.mark.parametrize(("module", "source"), PLANTED.values(), ids=PLANTED)
def test_a_planted_import_against_the_table_is_found(module: str, source: str) -> None:
    assert len(wrong_imports(imports_in(module, source))) == 1


PLANTED_USES = {
    "torch in the controller": ("controller.rounds.publish", "import torch"),
    "torch in the agent": ("agent.loop", "def f():\n    import torch"),
    "SQL outside the store": ("controller.service.service", "import sqlite3"),
    "vessim outside the simulation": ("controller.energy.solar", "import vessim"),
    "a process start outside the launcher": ("agent.home", "import subprocess"),
    "a wall clock in the policy": ("curtail.policy.rules", "import time\nnow = time.time()"),
    "a sleep in the service": ("controller.service.service", "import time\ntime.sleep(1)"),
    "a web framework in the service": ("controller.service.service", "from fastapi import Request"),
}


@pytest.mark.parametrize(("module", "source"), PLANTED_USES.values(), ids=PLANTED_USES)
def test_a_planted_use_against_the_table_is_found(module: str, source: str) -> None:
    assert len(wrong_capabilities(module, source)) == 1


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


# -- sizes -------------------------------------------------------------------

MOST_FILES = {"curtail": 18, "agent": 18, "controller": 4}
"""Files side by side in a package's own folder."""

MOST_LINES, MOST_FUNCTION_LINES = 400, 60
LONG_FUNCTIONS: dict[str, str] = {}
"""Function of over 60 lines -> why it is one."""


def test_folders_modules_and_functions_stay_small() -> None:
    for package, most in MOST_FILES.items():
        assert len(list((ROOT / package).glob("*.py"))) <= most, package
    long = [f"{module}: {source.count(chr(10))} lines" for module, source in SOURCES.items()
            if source.count("\n") > MOST_LINES]  # fmt: skip
    for module, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES and f"{module}.{node.name}" not in LONG_FUNCTIONS:
                    long.append(f"{module}.{node.name}: {lines} lines")
    assert long == []


def test_every_folder_says_in_its_init_what_it_is_for() -> None:
    for folder in {path.parent for path in MODULES.values()}:
        init = folder / "__init__.py"
        assert init.exists(), folder
        purpose = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))
        assert purpose and len(purpose.splitlines()[0]) <= 120, init


# -- what a start loads --------------------------------------------------------


@pytest.mark.parametrize("module", ["controller.service.service", "controller.http.app", "controller.serve"])
def test_the_controller_starts_without_torch_or_vessim(module: str) -> None:
    code = f"import sys, {module}; print([n for n in ('torch', 'vessim') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_agent_starts_without_torch() -> None:
    code = "import sys, agent.join; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
