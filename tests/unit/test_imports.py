"""Imports point one way: core <- nanochat, core <- controller, core <- agent; the command line on top.

Read from the syntax of all files, so an import inside a function counts too. What is
deliberately there is listed here with its reason; everything else fails.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("curtail", "controller", "agent", "nanochat", "rustbpe")

CORE = {"curtail", *(f"curtail.{name}" for name in
        ("errors", "clock", "disk", "config", "reading", "forecast", "costs", "clearing", "override", "policy",
         "decision", "wire", "token", "signing", "connect", "limits", "discovery", "lifeline",
         "notify"))}  # fmt: skip
"""What every package may use. The rest of `curtail` are leaves of the command line."""

TORCH_FREE = {f"nanochat.{name}" for name in
              ("weights", "delta", "codecs", "tensorfile", "checkpoint", "presets", "manifest", "recipe")}  # fmt: skip
"""Both ends apply bit-identical arithmetic and read the same files: docs/decisions/001."""

OWN_PROCESS = {"controller.aggregation.initial_weights": {"nanochat.gpt"}}
"""Makes version 0 in a process of its own, because building a model needs torch."""

PEERS = {"curtail": set(), "rustbpe": set(), "nanochat": {"rustbpe"}, "agent": {"nanochat"}, "controller": TORCH_FREE}
"""What a package may import besides itself and the core; the leaves of `curtail` may import everything."""


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


def imports_of(module: str) -> Iterator[Import]:
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

    return walk(ast.parse(MODULES[module].read_text(encoding="utf-8")), True, False)


CORE |= {module for module in MODULES if module.startswith(("curtail.config.", "curtail.wire."))}

ALL = [found for module in MODULES for found in imports_of(module)]


def resolve(target: str) -> str | None:
    """The module of ours that `target` names, or None if it is a stranger's."""
    if target.split(".")[0] not in PACKAGES:
        return None
    return target if target in MODULES else target.rpartition(".")[0]


def is_leaf(module: str) -> bool:
    return module.split(".")[0] == "curtail" and module not in CORE


def is_allowed(module: str, target: str) -> bool:
    if is_leaf(module) or target in CORE:
        return True
    own = module.split(".")[0]
    if is_leaf(target):
        return False
    if target.split(".")[0] == own or target in OWN_PROCESS.get(module, ()):
        return True
    return target in PEERS[own] or (target.split(".")[0] in PEERS[own])


def test_the_files_are_found() -> None:
    assert {"curtail.wire", "controller.service.service", "agent.join", "nanochat.gpt", "rustbpe"} <= set(MODULES)
    assert set(MODULES) >= CORE | TORCH_FREE | set(OWN_PROCESS)


def test_imports_point_one_way() -> None:
    wrong = []
    for found in ALL:
        target = resolve(found.target)
        if target is not None and not is_allowed(found.module, target):
            wrong.append(str(found))
    assert not wrong


def test_agent_and_controller_know_nothing_of_each_other() -> None:
    own = [(found.module.split(".")[0], found.target.split(".")[0]) for found in ALL]
    assert ("agent", "controller") not in own
    assert ("controller", "agent") not in own


def test_the_model_knows_nothing_of_sites() -> None:
    ours = [found for found in ALL if found.module.startswith("nanochat")]
    assert not [str(found) for found in ours if found.target.split(".")[0] in ("agent", "controller")]


def test_leaves_are_imported_by_the_command_line_only() -> None:
    wrong = [str(f) for f in ALL if (t := resolve(f.target)) and is_leaf(t) and not is_leaf(f.module)]
    assert not wrong


def test_modules_of_commands_do_not_import_each_other() -> None:
    shared = {"curtail.commands.program", "curtail.commands.options"}
    targets = [(f, resolve(f.target)) for f in ALL if f.module.startswith("curtail.commands.")]
    assert shared <= {target for _, target in targets}
    assert not [
        str(f) for f, target in targets if target and target.startswith("curtail.commands") and target not in shared
    ]


def test_the_core_needs_the_standard_library_only() -> None:
    """Third-party packages may appear in it inside functions: docs/decisions/008."""
    wrong = [
        str(found)
        for found in ALL
        if found.module in CORE and found.top and not found.typing
        and found.target.split(".")[0] not in {*sys.stdlib_module_names, "curtail"}
    ]  # fmt: skip
    assert not wrong


@pytest.mark.parametrize(
    ("packages", "only"),
    [
        (("vessim",), "controller.energy.simulation"),
        (("sqlite3", "sqlite_utils"), "controller.store"),
        (("fastapi", "starlette"), "controller.http.app"),
        (("zeroconf",), "curtail.system.mdns"),
        (("tiktoken",), "nanochat.tokenizer"),
    ],
)
def test_a_dependency_has_one_module_or_one_package(packages: tuple[str, ...], only: str) -> None:
    users = {found.module for found in ALL if found.target.split(".")[0] in packages}
    assert users == {only} or (users and all(user.startswith(f"{only}.") for user in users))


def test_only_the_launcher_of_the_agent_starts_processes() -> None:
    users = {f.module for f in ALL if f.module.startswith("agent") and f.target.split(".")[0] == "subprocess"}
    assert users == {"agent.launcher"}


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
