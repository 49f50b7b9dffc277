"""Every durable write has a purpose name and a line in the lists below; what writes past the injected disk has one too.

Found in the source text: the calls that hand a purpose to a `Disk`, and the calls
that write to a file system by themselves. Whoever adds one adds a line: the test
that loses the power there, or why nothing of it need outlive that.
"""

import ast
import re
from pathlib import Path

import curtail

ROOT = Path(curtail.__file__).parent.parent
TESTS = Path(__file__).parent / "power_loss"
SOURCES = sorted(
    path for name in ("agent", "controller", "curtail", "nanochat") for path in (ROOT / name).rglob("*.py")
)

AGENT, JOB = "test_power_loss_agent.py", "test_power_loss_job.py"
COMMIT, START = "test_fault_points.py", "test_power_loss_start.py"
"""Where each named write is a fault point. The points of test_fault_points.py are those of test_power_loss.py too."""

AGAIN = "of a command that a person runs; until it has said that it is done, it is run again"
MERGED = "lies in the folder of a version until that is at its place; the merge is done again"
REMEMBERED = "remembered for a person, who gives it once more"
TRAINED = "a training goes on from the newest whole checkpoint, whatever else is there"

PURPOSES = {
    "ADDRESS": ("names a process that is gone with the power",),
    "AGENT_HOME": (AGENT,),
    "BLOB": (COMMIT, START, JOB),
    "BLOBS": (START,),
    "CA": (AGENT, START),
    "CA_KEY": (START,),
    "CHECKPOINT_META": (COMMIT, START),
    "CHECKPOINT_MODEL": (COMMIT, START),
    "CONTRIBUTION": (JOB,),
    "CORE_CSV": (AGAIN,),
    "CREDENTIAL": (AGENT,),
    "DATA_FOLDER": (JOB,),
    "EXPORT_META": (AGAIN,),
    "EXPORT_MODEL": (AGAIN,),
    "FETCH_RECORD": (AGAIN,),
    "HOME": (START,),
    "HOOKS": (AGENT,),
    "IDENTITY": (AGENT,),
    "INNER_FOLDER": (JOB,),
    "INNER_STATE": (JOB,),
    "JOIN_TOKEN": (START,),
    "KEY": (AGENT,),
    "LEDGER_EXPORT": (AGAIN,),
    "MANIFEST": (AGAIN,),
    "MANIFEST_DROP": (AGAIN,),
    "MERGE_RESULT": (MERGED,),
    "METRICS": (TRAINED,),
    "PLOT": (AGAIN,),
    "REPORT": (AGAIN,),
    "REPORT_JSON": (AGAIN,),
    "REPORT_PNG": (AGAIN,),
    "RESTORED_BESIDE": (AGAIN,),
    "RUN_FILE": (AGAIN,),
    "SHARD": (AGAIN,),
    "SHARDS_DROP": (AGAIN,),
    "SHARDS_LIST": (AGAIN,),
    "SHARD_DROP": (AGAIN,),
    "TLS": (START,),
    "TLS_FOLDER": (START,),
    "TLS_KEY": (START,),
    "TOKENIZER": (AGAIN,),
    "TOKENS": (AGAIN,),
    "TOKENS_DROP": (AGAIN,),
    "TRACE": (AGAIN,),
    "TRAIN_FAILURE": (TRAINED,),
    "TRAIN_FOLDER": (TRAINED,),
    "TRAIN_OPTIMIZER": (TRAINED,),
    "TRAIN_PROGRESS": (TRAINED,),
    "UNIT": (AGAIN,),
    "VERSIONS": (START,),
    "VERSION_RESIDUAL": (MERGED,),
    "VERSION_UPDATE": (COMMIT,),
    "VERSION_VELOCITY": (MERGED,),
    "VIEWER": (REMEMBERED,),
    "VIEWER_TOKEN": (REMEMBERED,),
}
"""Each purpose and where the power is lost at it, or why it is lost nowhere."""

BESIDE = "written beside its place; what makes it durable and moves it there has a purpose"
SCRATCH = "not needed after the process that made it"
LOG = "a log, for people"
LINK = "a second name, made again when it is missing"

PAST_THE_DISK = {
    "agent/job/data_cache.py": {"link": LINK, "symlink_to": LINK},
    "agent/home.py": {"os.open": "a lock, which ends with its process", "ftruncate": "the process in that lock"},
    "agent/hooks.py": {"mkdir": LOG, "write_bytes": LOG},
    "agent/job_files.py": {"write_text": SCRATCH, "os.replace": SCRATCH},
    "agent/launcher.py": {"mkdir": "a folder for each job; the next one has another", "open": LOG},
    "agent/http/transfer.py": {"open": "a part that is gone on with; the whole is hashed before it counts"},
    "controller/aggregation/aggregate.py": {"copyfile": BESIDE},
    "controller/home/archive.py": {
        "os.open": AGAIN, "open": AGAIN, "mkdir": AGAIN, "rename": "a backup is fsynced as a whole before",
    },
    "controller/home/backup.py": {"mkdir": SCRATCH, "open": SCRATCH, "link": SCRATCH, "copyfile": SCRATCH},
    "controller/aggregation/process.py": {"mkdir": SCRATCH, "write_text": SCRATCH},
    "controller/files/uploads.py": {
        "mkdir": "an upload that has not its size begins anew", "open": BESIDE, "truncate": BESIDE, "os.open": BESIDE,
        "touch": "says that a part is safe, after its fsync",
    },
    "controller/fleet/power_commands.py": {"mkdir": LOG, "open": LOG},
    "controller/home/home.py": {"open": "a lock, which ends with its process", "symlink_to": LINK, "os.replace": LINK},
    "controller/files/trash.py": {"mkdir": SCRATCH, "rename": SCRATCH, "truncate": SCRATCH},
    "controller/home/restore.py": {"mkdir": BESIDE, "rename": "the folder is fsynced as a whole before"},
    "controller/store/database.py": {"sqlite3.connect": "synchronous = FULL; test_power_loss.py at each commit"},
    "controller/store/sqlite_file.py": {"sqlite3.connect": "reads, or copies into a backup"},
    "controller/files/versions.py": {
        "mkdir": BESIDE,
        "rename": "the points of test_fault_points.py that name the folder",
    },
    "curtail/commands/checkpoint/convert.py": {"mkdir": AGAIN},
    "curtail/commands/data/prepare.py": {"mkdir": AGAIN},
    "curtail/commands/demo/run.py": {"mkdir": AGAIN},
    "curtail/system/disk.py": {"os.open": "this is the disk", "open": "", "os.replace": "", "mkdir": ""},
    "curtail/commands/doctor/machine.py": {"TemporaryDirectory": SCRATCH},
    "curtail/commands/data/fetch.py": {"mkdir": AGAIN},
    "curtail/commands/report/run.py": {"mkdir": AGAIN},
    "curtail/commands/systemd/install.py": {"mkdir": AGAIN},
    "curtail/commands/data/mirrors.py": {
        "open": "a part that is gone on with; the whole is hashed before it counts",
        "write_text": "the ETag of that part", "link": BESIDE, "copyfile": BESIDE,
    },
    "curtail/commands/train/run.py": {"mkdir": TRAINED, "open": LOG},
    "nanochat/dataset.py": {"mkdir": SCRATCH},
    "nanochat/upstream_checkpoint.py": {"open": BESIDE, "torch.save": BESIDE},
    "nanochat/metrics.py": {"open": "lines of steps after the newest checkpoint are made again with them"},
    "nanochat/pack.py": {"mkdir": SCRATCH, "open": BESIDE, "os.replace": "the manifest last, each behind an fsync"},
    "nanochat/train_checkpoints.py": {"mkdir": BESIDE, "rename": TRAINED},
    "nanochat/shuffle.py": {"open": SCRATCH},
    "nanochat/tensorfile.py": {"os.open": BESIDE},
    "nanochat/trainer.py": {"mkdir": TRAINED},
    "nanochat/weights.py": {"open": BESIDE},
}  # fmt: skip
"""Each module that writes without a purpose: what it calls, and why that may be."""

OF_A_DISK = {"replace", "publish", "remove", "folder"}
WITH_A_DISK = {"write_tensors", "write_weights", "write_delta", "TensorFile"}
PASSED_ON = {"op", "self._op"}
"""How a purpose is called where it is handed on."""

WRITING = {
    "write_text", "write_bytes", "symlink_to", "hardlink_to", "touch", "mkdir", "makedirs", "copyfile",
    "copy2", "copytree", "move", "rename", "link", "symlink", "truncate", "ftruncate", "mkstemp", "mkdtemp",
    "NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile", "savez", "savetxt", "tofile",
}  # fmt: skip
WRITING_OF = {"os.replace", "shutil.copy", "torch.save", "np.save", "sqlite3.connect"}
MODE = re.compile(r"""['"](r\+b?|rb\+|[wax]b?\+?)['"]""")
FLAGS = ("O_CREAT", "O_WRONLY", "O_RDWR", "flags")


def calls():
    """Every call in the packages: (file, called name, its last part, the call)."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                yield path.relative_to(ROOT).as_posix(), name, name.rpartition(".")[2], node


def purpose_of(name, last, node):
    """What the call writes for, as it stands in the source; None: it writes nothing for a purpose."""
    if last in WITH_A_DISK:
        texts = [a for a in node.args if isinstance(a, ast.Constant) or ast.unparse(a) in PASSED_ON]
        return ast.unparse(texts[0]) if texts else "missing"
    if last not in OF_A_DISK or len(node.args) < 2 or name == "os.replace":
        return None
    first, second = node.args[:2]
    text = isinstance(first, ast.Constant) and isinstance(first.value, str)
    if text and not isinstance(second, ast.Constant):
        return ast.unparse(first)
    return ast.unparse(first) if name.removesuffix(f".{last}").endswith(("disk", "Disk()")) else None


def writes_by_itself(name, last, node):
    """What is called if that writes to a file system past the disk, else None."""
    text = ast.unparse(node)
    if "os.devnull" in text:
        return None
    if name in WRITING_OF:
        return name
    if name == "os.open":
        return name if any(flag in text for flag in FLAGS) else None
    if last == "open":
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        return "open" if any(MODE.search(ast.unparse(value)) for value in given) else None
    return last if last in WRITING else None


def test_every_durable_write_has_a_purpose_that_is_listed():
    found = {}
    for file, name, last, node in calls():
        purpose = purpose_of(name, last, node)
        if purpose is not None and purpose not in PASSED_ON:
            found.setdefault(purpose.strip("'\""), []).append(f"{file}:{node.lineno}")
    unlisted = {purpose: places for purpose, places in found.items() if purpose not in PURPOSES}
    assert unlisted == {}, "name the test that loses the power there, or say why none need"
    assert sorted(set(PURPOSES) - set(found)) == [], "nothing writes for these any more"


def test_each_listed_purpose_is_a_fault_point_of_the_tests_it_names():
    for purpose, where in PURPOSES.items():
        for name in where:
            if name.endswith(".py"):
                assert f'"{purpose}"' in (TESTS / name).read_text(), f"{name} loses no power at {purpose}"


def test_whatever_a_site_writes_durably_is_a_fault_point():
    found = {
        purpose.strip("'\"")
        for file, name, last, node in calls()
        if file.startswith("agent/") and (purpose := purpose_of(name, last, node)) is not None
    }
    assert {"IDENTITY", "INNER_STATE"} < found
    assert [purpose for purpose in sorted(found - PASSED_ON) if not {AGENT, JOB} & set(PURPOSES[purpose])] == []


def test_what_writes_past_the_disk_is_listed_with_a_reason():
    found = {}
    for file, name, last, node in calls():
        if called := writes_by_itself(name, last, node):
            found.setdefault(file, set()).add(called)
    assert found == {file: set(reasons) for file, reasons in PAST_THE_DISK.items()}
