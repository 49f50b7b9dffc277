"""The command line: help for everything, at once; errors in one line, with their exit code."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.main

import curtail
from curtail import __main__ as entry
from curtail import commands as cli
from curtail.commands import options as taken
from curtail.commands.program import Finite
from curtail.errors import AuthError, CurtailError, NotFound, UsageError

ROOT = Path(__file__).resolve().parents[4]
HEAVY = ("torch", "vessim", "pandas", "numpy", "httpx", "rich", "pyarrow", "tiktoken", "fastapi", "uvicorn", "zeroconf")


def commands() -> Iterator[tuple[str, ...]]:
    """The path of every command and group, the program itself first."""

    def below(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from below(child, (*path, name))

    return below(typer.main.get_command(cli.app), ())


ALL = list(commands())


def test_the_commands_are_these() -> None:
    assert {" ".join(path) for path in ALL} == {
        "", "checkpoint", "checkpoint import", "checkpoint export",
        "controller", "controller start", "controller backup", "controller restore", "controller service",
        "controller service install", "agent", "agent join", "agent service", "agent service install", "doctor",
        "status", "eval", "sample", "demo",
        "tokenizer", "tokenizer train", "tokenizer eval", "data", "data import", "data fetch", "data prepare",
        "trace", "trace synth", "trace import", "trace show", "signal", "signal check", "ledger", "ledger check",
        "ledger verify", "ledger export", "ledger settle", "ledger totals",
        "train", "bench", "bench train", "simulate", "report", "token", "token create", "token list", "token revoke",
        "token rotate", "node", "node list", "node rm",
        "override", "site", "site list", "site plan", "site up", "site down", "site auto", "site sweep",
        "site manifest",
    }  # fmt: skip


def test_the_help_lists_the_commands_in_this_order() -> None:
    assert [path[0] for path in ALL if len(path) == 1] == [
        "status", "train", "eval", "sample", "demo", "simulate", "report", "doctor", "override",
        "controller", "agent", "checkpoint", "tokenizer", "data", "bench", "trace", "signal", "ledger",
        "token", "node", "site",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "curtail")
def test_every_command_and_every_flag_has_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: {' '.join(('curtail', *path))}")
    command = typer.main.get_command(cli.app)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"


def test_no_help_imports_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from curtail.__main__ import run\n"
        f"for path in {ALL!r}:\n"
        "    assert run([*path, '--help']) == 0\n"
        f"heavy = sorted({{m.partition('.')[0] for m in sys.modules}} & set({HEAVY!r}))\n"
        "names = {m.partition('.')[0] for m in sys.modules}\n"
        "ours = sorted(names & {'agent', 'controller', 'nanochat', 'rustbpe'})\n"
        "assert not heavy and not ours, (heavy, ours)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["--version"]) == 0
    assert capsys.readouterr().out == f"curtail {curtail.__version__}\n"


TRAINED = ["controller", "start", "run.toml", "--home", "h", "--trace", "t.csv", "--unit"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["xyzzy"], 2, "no such command 'xyzzy': see curtail --help"),
        (["status", "--nope"], 2, "no such option"),
        (["agent", "join", "--site", "a"], 2, "missing option '--region': see curtail agent join --help"),
        (["agent", "join", "--site", "a/b", "--region", "r"], 2, "'a/b' is not a valid name of a site"),
        (["agent", "join", "--site", "a", "--region", "r s"], 2, "'r s' is not a valid name of a region"),
        (
            ["agent", "join", "--site", "a", "--region", "r", "--token-file", "/no/where"],
            3,
            "the token file /no/where does not exist",
        ),
        ([*TRAINED, "kg/MWh"], 2, "--unit"),
        ([*TRAINED, "g/kWh", "--port", "70000"], 2, "--port"),
        ([*TRAINED, "g/kWh", "--speed", "0"], 2, "--speed"),
        (["status", "127.0.0.1:8765"], 2, "write it as https://HOST:PORT"),
        (["status", "http://127.0.0.1:9"], 5, "no controller answers at http://127.0.0.1:9"),
        (["train", "--preset", "d2-test", "--data", "/no/where", "--out", "x"], 3, "no manifest.json in /no/where"),
        (["train", "--data", "d", "--out", "x", "--device-batch-samples", "0"], 2, "give a number of samples, or auto"),
        (["bench", "train"], 2, "the model must be given by --preset or by --depth"),
        (["eval", "/no/where"], 3, "there is no checkpoint in /no/where"),
        (
            ["controller", "start", "run.toml", "--home", "h", "--advertise", "https://a.example:8765"],
            2,
            "invalid value for --advertise: 'https://a.example:8765'",
        ),
        (["token", "create", "--home", "h", "--role", "chef"], 2, "invalid value for '--role': 'chef' is not one of"),
        (["sample", "/no/where", "def "], 3, "there is no checkpoint in /no/where"),
        (["data", "import", "/no/where", "--out", "/tmp/x"], 3, "/no/where does not exist"),
        (["trace", "synth", "--out", "x", "--region", "A", "--segment", "x"], 2, "'x' is not a segment"),
        (
            ["trace", "show", "t.csv", "--unit", "g/kWh", "--threshold", "nan"],
            2,
            "invalid value for --threshold: nan: give a",
        ),
        (
            ["trace", "show", "t.csv", "--unit", "g/kWh", "--threshold", "-inf"],
            2,
            "invalid value for --threshold: -inf",
        ),
        ([*TRAINED, "g/kWh", "--speed", "inf"], 2, "invalid value for --speed: inf"),
        ([*TRAINED, "g/kWh", "--speed", "nan"], 2, "--speed"),
        (["sample", "/no/where", "def ", "--temperature", "inf"], 2, "invalid value for --temperature: inf"),
        (["status", "http://127.0.0.1:9", "--interval", "nan"], 2, "--interval"),
        (
            ["controller", "service", "install", "--dry-run", "--", *TRAINED[2:], "g/kWh", "--speed", "inf"],
            2,
            "--speed",
        ),
        (["token", "create", "--home", "h", "--expires", "soon"], 2, "write it as 90 min, 12 h or 30 d, or never"),
    ],
)
def test_errors_are_one_line_with_a_remedy(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert entry.run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("curtail: ")
    assert says in captured.err


def test_every_command_refuses_numbers_that_are_not_finite() -> None:
    def leaves(command: object) -> Iterator[object]:
        children = getattr(command, "commands", {}).values()
        yield from (leaf for child in children for leaf in leaves(child)) if children else [command]

    found = list(leaves(typer.main.get_command(cli.app)))
    assert len(found) > 30 and all(isinstance(command, Finite) for command in found)


@pytest.mark.parametrize("where", ["start", "imports", "words"])
def test_an_interrupt_at_any_moment_of_a_start_ends_it_quietly_with_130(where: str, tmp_path: Path) -> None:
    interrupt = "def broken(*_):\n    raise KeyboardInterrupt\n"
    moments = {
        "start": "class Loader:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'curtail.errors': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Loader())\n",
        "imports": "class Loader:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'curtail.commands.train.command': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Loader())\n",
        "words": "import curtail.__main__\ncurtail.__main__.complain = broken\n",
    }
    program = f"import sys\nsys.argv = ['curtail', 'xyzzy']\n{interrupt}{moments[where]}"
    program += "from curtail.__main__ import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_error_with_line_breaks_is_still_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    entry.complain(CurtailError("two\nlines", "do\n this"))
    assert capsys.readouterr().err == "curtail: two lines: do this\n"


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "invoke", fail)


def test_ctrl_c_leaves_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(KeyboardInterrupt(), monkeypatch)
    assert entry.run(["status"]) == 130


def test_ctrl_c_inside_a_command_leaves_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("curtail.commands.status.watch.show", interrupt)
    assert entry.run(["status", "http://x"]) == 130


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(ZeroDivisionError("bug"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        entry.run(["status"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "curtail", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) in (0, 1)


def listing(redirect: str) -> tuple[int, str]:
    """The exit code of a command whose stdout is redirected by the shell, and what it said on stderr."""
    command = f'"{sys.executable}" -m curtail --version {redirect}'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stderr


def test_a_closed_stdout_is_no_error() -> None:
    assert listing(">&-") == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_an_output_without_room_is_one_line() -> None:
    code, said = listing("> /dev/full")
    assert code == 1
    assert (
        said == "curtail: cannot write the output: No space left on device: free some space, or redirect it elsewhere\n"
    )


def test_a_strangers_package_stops_the_program(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "curtail", "--version"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and f"another package named 'agent' in {tmp_path / 'agent'}" in done.stderr


def test_the_token_comes_from_its_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "join-token"
    file.write_text("ct0.a.b\n")
    monkeypatch.setenv("CURTAIL_TOKEN", "ct0.c.d")
    assert cli.read_token(file) == "ct0.a.b"
    assert cli.read_token(None) == "ct0.c.d"
    monkeypatch.delenv("CURTAIL_TOKEN")
    assert cli.read_token(None) is None
    for wrong in (b"", b"two words", b"\xff\xfe\x00", b"x" * 10_000):
        file.write_bytes(wrong)
        with pytest.raises(UsageError):
            cli.read_token(file)
    with pytest.raises(NotFound):
        cli.read_token(tmp_path / "other")
    with pytest.raises(AuthError):
        cli.read_token(tmp_path)


def test_the_token_comes_from_stdin_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ct0.a.b\n"))
    assert cli.read_token(Path("-")) == "ct0.a.b"


def test_no_command_takes_a_token_as_an_argument() -> None:
    for path in ALL:
        command = typer.main.get_command(cli.app)
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        names = {option for parameter in command.params for option in parameter.opts}
        assert not names & {"--token", "--secret", "--credential", "--password"}, path


def test_names_of_sites_and_regions() -> None:
    for name in ("a", "CAISO_NORTH", "de-1.x", "x" * 64):
        assert cli.check_name("site", name) == name
    for name in ("", "x" * 65, "a b", "a/b", "ä", "a\n"):
        with pytest.raises(UsageError):
            cli.check_name("site", name)


@pytest.mark.parametrize("name", ["train.example.org", "10.0.0.7", "2001:db8::1", "node_7"])
def test_what_a_controller_may_be_called(name: str) -> None:
    assert taken.check_host(name) == name


@pytest.mark.parametrize("name", ["a.example:8765", "https://a.example", "x y", "", "2001:db8::1]"])
def test_a_controllers_name_is_no_url_and_has_no_port(name: str) -> None:
    with pytest.raises(UsageError, match="without https:// and port"):
        taken.check_host(name)


def test_the_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.default_state() == tmp_path / "curtail"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification says: ignore it
    monkeypatch.setenv("HOME", "/home/x")
    assert cli.default_state() == Path("/home/x/.local/state/curtail")
