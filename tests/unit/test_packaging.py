"""What a person installs: one version, complete locks, five packages together, a careful installer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("curtail", "rustbpe", "nanochat", "agent", "controller")
LOCKS = ("requirements.lock", "requirements-dev.lock")
TOOLS = (
    "sh",
    "cat",
    "cksum",
    "cut",
    "dirname",
    "find",
    "grep",
    "readlink",
    "sed",
    "sha256sum",
    "shasum",
    "sort",
    "uname",
)


def requirements(lock: str) -> dict[str, list[str]]:
    """Pinned requirement -> its hashes; comments and continuation marks removed."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    lines = [line.split() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return {
        " ".join(word for word in line if not word.startswith("--hash=")): [
            word for word in line if word.startswith("--hash=")
        ]
        for line in lines
    }


def stub_path(folder: Path, **programs: str) -> Path:
    """A folder with the few tools that the installer needs, and shell scripts with the given bodies."""
    folder.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def install(home: Path, *arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """The installer with nothing but `path` and an empty home."""
    home.mkdir(exist_ok=True)
    environment = {"PATH": str(path), "HOME": str(home), "CURTAIL_PYTHON": sys.executable}
    return subprocess.run(
        ["/bin/sh", str(ROOT / "install.sh"), *arguments],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )


def test_the_version_is_the_same_in_both_places() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'__version__ = "{project["version"]}"' in (ROOT / "curtail" / "__init__.py").read_text()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_no_address_and_no_path_of_a_machine(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search(r"(^|\s)/\w|--(extra-)?index|--find-links", text)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_and_hashes_every_requirement(lock: str) -> None:
    for requirement, hashes in requirements(lock).items():
        assert re.match(r"[a-z0-9-]+==[^ ]+( ; .+)?$", requirement), requirement
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), requirement


def test_the_development_lock_agrees_with_the_product_lock() -> None:
    product, development = (requirements(lock) for lock in LOCKS)
    assert {name: product[name] for name in product} == {name: development.get(name) for name in product}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_covers_every_declared_dependency(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = list(project["dependencies"])
    if lock == "requirements-dev.lock":
        declared += project["optional-dependencies"]["dev"]
    names = {requirement.split("==")[0] for requirement in requirements(lock)}
    assert {re.split(r"[^A-Za-z0-9-]", dependency)[0] for dependency in declared} <= names


def test_the_five_packages_come_from_the_same_folder() -> None:
    folders = set()
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, f"{name} is not a package of ours"
        folders.add(Path(spec.origin).parents[1])
    assert len(folders) == 1, folders


@pytest.mark.parametrize("command", [["install"], ["setup"], ["demo", "--json"], ["uninstall"]])
def test_a_dry_run_changes_nothing(tmp_path: Path, command: list[str]) -> None:
    path = stub_path(tmp_path / "bin", cargo="echo cargo 99.0.0", cc="exit 1")
    done = install(tmp_path / "a home", "--dry-run", *command, path=path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "a home").iterdir()) == []
    if command != ["setup"]:  # whose environment, in the repository, may be up to date
        assert ("would run:" in done.stdout) == (command != ["uninstall"])


def test_a_word_it_does_not_know_is_wrong_usage(tmp_path: Path) -> None:
    done = install(tmp_path / "home", "nonsense", path=stub_path(tmp_path / "bin"))
    assert done.returncode == 2
    assert "nonsense" in done.stderr and "Usage:" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("command", ["install", "demo", "test"])
def test_without_rust_it_says_what_to_do_and_installs_nothing(tmp_path: Path, command: str) -> None:
    done = install(tmp_path / "home", command, path=stub_path(tmp_path / "bin"))
    assert done.returncode == 1
    assert "Rust is missing" in done.stderr and "rustup" in done.stderr and done.stdout == ""
    assert list((tmp_path / "home").iterdir()) == []


def test_an_old_rust_is_refused_with_both_versions(tmp_path: Path) -> None:
    done = install(tmp_path / "home", path=stub_path(tmp_path / "bin", cargo="echo cargo 1.60.0"))
    assert done.returncode == 1
    assert "cargo 1.60.0" in done.stderr and "or newer" in done.stderr


def test_uninstall_removes_what_its_receipt_names_and_nothing_else(tmp_path: Path) -> None:
    path = stub_path(tmp_path / "bin")
    for name in ("ln", "rm", "rmdir", "sleep"):
        (path / name).symlink_to(shutil.which(name) or os.devnull)
    prefix = tmp_path / "a prefix"
    for folder in ("env-1", "env-2", "uv-1", "runs"):
        (prefix / folder).mkdir(parents=True)
    link = tmp_path / "curtail"
    link.symlink_to(prefix / "env-1" / "bin" / "curtail")
    (prefix / "receipt").write_text(f"env=env-1\nlink={link}\nown=env-1\nown=uv-1\nown=../bin\nown=runs\nown=\n")
    done = install(tmp_path / "home", "--prefix", str(prefix), "uninstall", path=path)
    assert done.returncode == 0, done.stderr
    assert sorted(entry.name for entry in prefix.iterdir()) == ["env-2", "runs"]
    assert not link.is_symlink() and path.is_dir()


@pytest.mark.parametrize(
    ("arguments", "last"),
    [([], ".ci/all"), (["tests/unit/test_docs.py", "-k", "link"], ".venv/bin/pytest tests/unit/test_docs.py -k link")],
)
def test_with_arguments_pytest_alone_runs_without_them_everything(
    tmp_path: Path, arguments: list[str], last: str
) -> None:
    path = stub_path(tmp_path / "bin", cargo="echo cargo 99.0.0", cc="exit 1")
    done = install(tmp_path / "home", "--dry-run", "test", *arguments, path=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"would run: {ROOT}/{last}"


PYTHON = f"""#!/bin/sh
case "$*" in *_rustbpe*) exit 0 ;; esac
exec {sys.executable} "$@"
"""
UV = """
[ "$*" != --version ] || { echo uv 99.0.0; exit; }
for word; do case $last in --python) python=$word ;; esac; last=$word; done
case "$*" in
    *" venv "*) step=venv; mkdir -p "$last/bin"; cp "${0%/*}/python-of-env" "$last/bin/python" ;;
    *" pip sync "*) step=sync ;;
    *) step=install; echo 'echo it works' >"${python%/*}/curtail"; chmod +x "${python%/*}/curtail" ;;
esac
[ ! -e "${0%/*}/stop-at-$step" ] || kill -9 0
"""


def path_with_uv(folder: Path) -> Path:
    """Enough for a whole installation; uv makes environments of shell scripts, and is killed where a file says so."""
    path = stub_path(folder, cargo="echo cargo 99.0.0", cc="exit 1", uv=UV)
    for name in ("chmod", "cp", "ln", "mkdir", "mv", "rm", "rmdir", "sleep"):
        (path / name).symlink_to(shutil.which(name) or os.devnull)
    (path / "python-of-env").write_text(PYTHON)
    (path / "python-of-env").chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("out_of_date", "step"),
    [
        ("all", "venv"),
        ("all", "sync"),
        ("all", "install"),
        ("lock", "sync"),
        ("lock", "install"),
        ("sources", "install"),
    ],
)
def test_killed_at_any_step_the_next_run_completes_it_and_leaves_one_environment(
    tmp_path: Path, out_of_date: str, step: str
) -> None:
    """Of a first installation, and of updates with other packages or with other sources."""
    path = path_with_uv(tmp_path / "bin")
    home = tmp_path / "home"
    prefix, command = home / ".local" / "share" / "curtail", home / ".local" / "bin" / "curtail"
    if out_of_date != "all":
        done = install(home, path=path)
        assert done.returncode == 0, done.stderr
        receipt = prefix / "receipt"
        receipt.write_text(re.sub(rf"^{out_of_date}=.*", f"{out_of_date}=of before", receipt.read_text(), flags=re.M))
    (path / f"stop-at-{step}").touch()
    killed = install(home, path=path)
    assert killed.returncode == -9, killed.stderr
    assert command.is_file() == (out_of_date != "all")

    (path / f"stop-at-{step}").unlink()
    done = install(home, path=path)
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["/bin/sh", command], capture_output=True, text=True, check=True).stdout == "it works\n"
    (environment,) = prefix.glob("env-*")
    assert command.resolve() == environment / "bin" / "curtail"
    assert not list(prefix.glob(".lock")) and install(home, "uninstall", path=path).returncode == 0
    assert not prefix.exists() and not command.is_symlink()


def test_a_command_of_somebody_else_stays(tmp_path: Path) -> None:
    path = path_with_uv(tmp_path / "bin")
    other = tmp_path / "home" / ".local" / "bin" / "curtail"
    other.parent.mkdir(parents=True)
    other.write_text("another program")
    done = install(tmp_path / "home", path=path)
    assert done.returncode == 1 and "not ours; it stays" in done.stderr
    assert other.read_text() == "another program"
    assert install(tmp_path / "home", "uninstall", path=path).returncode == 0
    assert other.read_text() == "another program"
