"""The documents say what the code is: commands, paths, keys, tables, files, state tables, tests."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import tomllib
import typing
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import typer.main

from agent import lifecycle
from controller import store
from controller.fleet import power_states
from controller.home.home import FIXED
from controller.http.app import create_app
from controller.rounds import lifecycle as rounds
from curtail import commands as cli
from curtail import config, errors, wire
from curtail.grid.reading import UNITS
from nanochat.presets import PRESETS, parameter_count, preset

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (DOCS / "architecture.md").read_text(encoding="utf-8")
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")
GUARANTEES = (DOCS / "guarantees.md").read_text(encoding="utf-8")
QUICKSTART = (DOCS / "quickstart.md").read_text(encoding="utf-8")
RUN_FILE = (DOCS / "reference" / "run-file.md").read_text(encoding="utf-8")
CLI = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
EXAMPLES = sorted((DOCS / "examples").glob("*.toml"))
PACKAGES = ("curtail", "controller", "agent", "nanochat", "rustbpe")
README_LINES = 150

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    lines = text.splitlines()
    start = lines.index(heading) + 1
    fenced = False
    for number, line in enumerate(lines[start:], start):
        fenced ^= line.startswith("```")
        if not fenced and re.match(rf"#{{1,{level}}} ", line):
            return "\n".join(lines[start:number])
    return "\n".join(lines[start:])


def table(text: str) -> list[list[str]]:
    """The rows of the first table in `text`, without its head."""
    rows = []
    for line in text.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    assert len(rows) > 2, "there is no table"
    return rows[2:]


def prose(text: str) -> str:
    """`text` without code, addresses and names of files."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", "", text)


# -- the command line ------------------------------------------------------


def commands() -> dict[str, Any]:
    def below(command: Any, path: str) -> dict[str, Any]:
        children = getattr(command, "commands", None)
        if children is None:
            return {path: command}
        return {k: v for name, child in children.items() for k, v in below(child, f"{path} {name}").items()}

    return below(typer.main.get_command(cli.app), "curtail")


COMMANDS = commands()


def described(path: str) -> str:
    heading = [line for line in CLI.splitlines() if re.fullmatch(rf"### `{re.escape(path)}( \S+)*`", line)]
    assert len(heading) == 1, f"docs/reference/cli.md needs one section for {path}"
    return section(CLI, heading[0])


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_described_and_no_other(path: str) -> None:
    options = {
        name
        for parameter in COMMANDS[path].params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--") and name != "--help"
    }
    rows = table(described(path))
    assert {name for row in rows for name in re.findall(r"`(--[a-z0-9-]+)`", row[0])} == options


@pytest.mark.parametrize("path", COMMANDS)
def test_documented_defaults_are_the_real_ones(path: str) -> None:
    documented = {row[0].strip("`"): row[1] for row in table(described(path))}
    for parameter in COMMANDS[path].params:
        if isinstance(parameter.default, (int, float, str)) and not isinstance(parameter.default, bool):
            assert documented[parameter.opts[0]] == f"`{parameter.default}`"
        elif parameter.required and parameter.opts[0].startswith("--"):
            assert documented[parameter.opts[0]] == "required"


def test_no_command_is_described_that_is_not_there() -> None:
    named = re.findall(r"^### `(curtail(?: [a-z]+)+)", CLI, flags=re.MULTILINE)
    assert set(named) == set(COMMANDS)


def test_every_exit_code_is_described() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.CurtailError)]
    codes = {int(row[0]) for row in table(section(CLI, "## Exit codes"))}
    assert codes == {kind.exit_code for kind in kinds} | {0, 130}


@pytest.mark.parametrize(("name", "text", "least"), [("README", README, 4), ("quickstart", QUICKSTART, 9)])
def test_a_page_for_newcomers_names_only_commands_and_options_that_exist(name: str, text: str, least: int) -> None:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    used = re.findall(r"^curtail .*$", shell, flags=re.MULTILINE)
    assert len(used) >= least, name
    for line in used:
        path = max((path for path in COMMANDS if line.startswith(path + " ")), key=len, default=None)
        assert path, line
        known = {name for parameter in COMMANDS[path].params for name in parameter.opts}
        assert set(re.findall(r"(?<= )--[a-z-]+", line)) <= known, line


# -- the contract and the store --------------------------------------------


def test_the_contract_is_the_one_of_the_code() -> None:
    """Against `curtail.wire` for the paths, and against the application for the methods."""
    paths = {value for name, value in vars(wire).items() if name.isupper() and str(value).startswith("/")}
    rows = table(section(PROTOCOL, "## The HTTP contract"))
    assert {row[1].strip("`") for row in rows} == paths - {wire.PREFIX}
    app = create_app(typing.cast(Any, None), typing.cast(Any, None), typing.cast(Any, None), lambda: None)
    served = {
        (method, typing.cast(Any, route).path)
        for route in app.routes
        for method in typing.cast(Any, route).methods
        if typing.cast(Any, route).path in paths and method != "HEAD"
    }
    assert {(row[0], row[1].strip("`")) for row in rows} == served


def test_every_table_of_the_store_is_described() -> None:
    # a table that was made anew with other columns is made twice
    scripts = "\n".join(store.MIGRATIONS)
    gone = set(re.findall(r"DROP TABLE (\w+)", scripts))
    made = [name for name in dict.fromkeys(re.findall(r"CREATE TABLE (\w+)", scripts)) if name not in gone]
    assert [row[0].strip("`") for row in table(section(ARCHITECTURE, "## The store"))] == made


@pytest.mark.parametrize(
    ("heading", "code"),
    [
        ("### Round", rounds.ROUND_NEXT),
        ("### Member", rounds.MEMBER_NEXT),
        ("### Agent", lifecycle.NEXT),
        ("### Machines", power_states.POWER_NEXT),
    ],
)
def test_a_state_table_equals_the_codes(heading: str, code: dict[tuple[StrEnum, StrEnum], StrEnum]) -> None:
    written = [tuple(row) for row in table(section(ARCHITECTURE, heading))]
    assert written == [(state.value, event.value, after.value) for (state, event), after in code.items()]


@pytest.mark.parametrize(
    ("heading", "states"),
    [
        ("### Round", rounds.Round),
        ("### Member", rounds.Member),
        ("### Agent", lifecycle.State),
        ("### Machines", power_states.PowerState),
    ],
)
def test_every_state_is_explained(heading: str, states: type[StrEnum]) -> None:
    words = section(ARCHITECTURE, heading).split("|")[0]
    assert not [state.value for state in states if state.value not in words]


# -- the run file ----------------------------------------------------------


def sections() -> dict[str, Any]:
    hints = typing.get_type_hints(config.RunConfig)
    named = {
        "regions.NAME": config.RegionSection,
        "regions.NAME.solar": config.SolarSection,
        "regions.NAME.battery": config.BatterySection,
        "sites.NAME": config.SiteSection,
        "sites.NAME.slurm": config.SlurmSection,
        "sites.NAME.kubernetes": config.KubernetesSection,
    }
    single = [field.name for field in fields(config.RunConfig) if field.name not in ("regions", "sites")]
    return {**{name: hints[name] for name in single}, **named}


SECTIONS = sections()


def keys(name: str) -> list[list[str]]:
    return table(section(RUN_FILE, f"## `[{name}]`"))


def test_every_section_of_the_run_file_is_described_and_no_other() -> None:
    assert set(re.findall(r"^## `\[([\w.]+)\]`$", RUN_FILE, flags=re.MULTILINE)) == set(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_is_described_and_no_other(name: str) -> None:
    rows = keys(name)
    assert [row[0] for row in rows] == [f"`{field.name}`" for field in fields(SECTIONS[name])]
    for row, field in zip(rows, fields(SECTIONS[name]), strict=True):
        assert (row[2] == "required") == (field.default is MISSING), row
        assert all(row), row


@pytest.mark.parametrize("name", SECTIONS)
def test_documented_defaults_parse_to_the_real_ones(name: str) -> None:
    given = [(row[0].strip("`"), row[2].strip("`")) for row in keys(name) if row[2].startswith("`")]
    least: dict[str, Any] = {
        "run": {"name": "x"}, "model": {"preset": "d2-test"}, "data": {"path": "data"},
        "training": {"token_budget": 1000, "batch_samples": 1},
        "regions": {"NAME": {"power_train": "1 W", "power_idle": "1 W"}},
    }  # fmt: skip
    if name.startswith("regions.NAME."):
        least["regions"]["NAME"] |= {"solar": {"peak": "1 kW", "path": "x.csv"}, "battery": {"capacity": "1 kWh"}}
    if name == "sites.NAME":
        least["sites"] = {"NAME": {}}
    if name.startswith("sites.NAME."):
        kind = name.rpartition(".")[2]
        least["sites"] = {"NAME": {"provisioner": kind, "region": "NAME", kind: {}}}
    bare = config.parse_config(least)
    place: dict[str, Any] = least
    for part in name.split("."):
        place = place.setdefault(part, {})
    place.update(tomllib.loads("\n".join(f"{key} = {value}" for key, value in given)))
    assert config.parse_config(least) == bare


def test_every_unit_is_named() -> None:
    units = {unit for kind in config.QUANTITIES.values() for unit in kind}
    assert not [unit for unit in units if f"`{unit}`" not in RUN_FILE]
    assert not [unit for unit in UNITS if f"`{unit}`" not in CLI]


def test_every_preset_is_described_with_its_size() -> None:
    text = section(RUN_FILE, "## `[model]`")
    rows = {row[0].strip("`"): row[1:4] for row in table(text[text.index("| preset |") :])}
    assert set(rows) == set(PRESETS)
    for name, shape in PRESETS.items():
        assert rows[name] == [f"{n:,}" for n in (parameter_count(shape), shape.vocab_size, shape.sequence_len)]


def test_what_is_fixed_is_said() -> None:
    rows = table(section(RUN_FILE, "## What may change between restarts"))
    fixed = next(row[0] for row in rows if row[1].startswith("fixed"))
    assert re.findall(r"\[(\w+)\]", fixed) == list(FIXED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_run_file(path: Path) -> None:
    run = config.load_config(path)
    assert preset(run.model.preset)
    assert run.training.token_budget >= run.training.batch_samples * preset(run.model.preset).sequence_len


def test_there_are_two_examples() -> None:
    assert [path.name for path in EXAMPLES] == ["d20.toml", "run.toml"]


# -- files, links, tests, words --------------------------------------------


def tree() -> list[str]:
    """The folders of the tree in the README, each with the path from the repository's root and a slash at its end."""
    block = re.search(r"```text\n(.*?)```", section(README, "## Folders"), flags=re.DOTALL)
    assert block
    found, above = [], [""]
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, *words = line.split()
        assert name.endswith("/"), f"{name} is not a folder"
        assert words, f"{name} has no word about it"
        above = [*above[: depth + 1], above[depth] + name]
        found.append(above[-1])
    return found


def test_the_readme_names_every_package_folder() -> None:
    """The five packages and the packages directly in them; deeper ones are in docs/layout.md."""
    packages = {
        f"{init.parent.relative_to(ROOT).as_posix()}/"
        for package in PACKAGES
        for pattern in ("__init__.py", "*/__init__.py")
        for init in (ROOT / package).glob(pattern)
    }
    assert packages - set(tree()) == set(), "packages that are missing in the README's tree of folders"


def test_the_readme_names_no_folder_that_is_missing_and_none_twice() -> None:
    assert not [path for path in tree() if not (ROOT / path).is_dir()]
    assert len(tree()) == len(set(tree()))


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= README_LINES


def test_the_layout_page_is_the_generated_one() -> None:
    spec = importlib.util.spec_from_file_location("make_layout", DOCS / "make_layout.py")
    assert spec and spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = (DOCS / "layout.md").read_text(encoding="utf-8")
    assert written == generator.page(), f"docs/layout.md is stale: run `{generator.COMMAND}`"


def test_the_index_names_every_page() -> None:
    index = DOCS / "index.md"
    linked = {
        (DOCS / target.partition("#")[0]).resolve() for target in re.findall(r"\]\(([^)]+)\)", index.read_text("utf-8"))
    }
    pages = {path for path in DOCS.rglob("*.md") if path != index and path.parent.name != "decisions"}
    assert not sorted(path.name for path in pages - linked)


@page
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if file.startswith(("http:", "https:")):
            continue
        found = path.parent / file if file else path
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}, target


@page
def test_every_file_and_folder_that_is_named_exists(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        pytest.skip("it tells of files that are gone")
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)}|tests)/(?:\w+/)*(?:\w+\.\w+)?)`", text)
    assert not [name for name in named if "NAME" not in name and not (ROOT / name).exists()]


@page
def test_every_test_that_is_named_exists(path: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", path.read_text(encoding="utf-8")):
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


@page
def test_the_words_are_ours(path: Path) -> None:
    """Words that name nothing here; a page about another project, or made of docstrings, may use theirs."""
    if path.name in ("coming-from-flower.md", "layout.md"):
        pytest.skip("other words belong there")
    avoided = r"\b(workers?|tasks?|managers?|utils?|helpers?|misc)\b"
    assert not re.findall(avoided, prose(path.read_text(encoding="utf-8")), flags=re.IGNORECASE)


def test_every_guarantee_names_a_test_or_says_that_there_is_none() -> None:
    rows = table(section(GUARANTEES, "## What always holds")) + table(section(GUARANTEES, "## What a fault costs"))
    assert len(rows) > 20
    assert not [row[0] for row in rows if "::test_" not in row[-1] and "no test yet" not in row[-1]]


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (DOCS / "decisions").glob("*.md"))
    assert [name[:3] for name in names] == [f"{number:03}" for number in range(1, len(names) + 1)]


def test_the_changelog_knows_this_version() -> None:
    from curtail import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
