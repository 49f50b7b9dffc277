"""Checkpoints, tokenizers, tokens and shards that do not fit: one clear line, an exit code, and every file as before.

The command line runs in this process, once for each case; at the end each command once as a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from curtail.__main__ import run
from curtail.system.disk import SystemDisk
from nanochat import dataset
from nanochat.tokenizer import Tokenizer

pytestmark = pytest.mark.fault

USAGE, NOT_FOUND, FAILURE, CONFLICT = 2, 3, 1, 7
STEP = "step00000002"
TRAIN = ("train", "--preset", "d2-test", "--batch-samples", "4", "--threads", "1", "--ranks", "1")

Damage = Callable[[Path], object]
"""Spoils the inputs below a folder: data, shards, other, small, run, theirs."""


def call(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def inputs(packed_data, tmp_path_factory) -> Path:
    """Everything whole: shards, packed data, two other tokenizers, a run of two steps, its export for nanochat."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(packed_data, folder / "data")
    shutil.copytree(packed_data.parent / "shards", folder / "shards")
    for name, part, vocabulary in (("other", "validation", 512), ("small", "train", 400)):
        (folder / name).mkdir()
        tokenizer = Tokenizer.train(dataset.iterate_texts(folder / "shards", part), vocabulary)
        tokenizer.save(folder / name / "tokenizer.json", SystemDisk())
    threads = torch.get_num_threads()
    assert call(*TRAIN, "--data", folder / "data", "--out", folder / "run", "--steps", 2) == 0
    torch.set_num_threads(threads)
    checkpoint = folder / "run" / "checkpoints" / STEP
    assert call("checkpoint", "export", checkpoint, "--format", "nanochat", "--out", folder / "theirs") == 0
    return folder


@pytest.fixture
def place(inputs, tmp_path, monkeypatch) -> Path:
    """A copy of the inputs, and the folder that commands run in."""
    folder = tmp_path / "place"
    shutil.copytree(inputs, folder)
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file, and the folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def refused(place: Path, capsys, code: int, words: tuple[str, ...], *arguments: object) -> None:
    """The command ends with `code` and one line that has all `words`, and changes nothing."""
    before = contents(place)
    capsys.readouterr()
    threads = torch.get_num_threads()
    found = call(*arguments)
    torch.set_num_threads(threads)
    out, said = capsys.readouterr()
    assert found == code, said
    assert out == "", out
    complaints = [line for line in said.splitlines() if line.startswith("curtail: ")]
    assert complaints == said.splitlines()[-1:]
    assert ": " in complaints[0].removeprefix("curtail: "), "it does not say what to do"
    for word in words:
        assert word in complaints[0]
    assert contents(place) == before


# -- what is done to the inputs --------------------------------------------


def cut(name: str, keep: float = 0.5) -> Damage:
    """Keep only the first part of a file."""

    def damage(place: Path) -> None:
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[: int(keep * len(data))])

    return damage


def flip(name: str) -> Damage:
    """Change one bit near the end of a file."""

    def damage(place: Path) -> None:
        data = bytearray((place / name).read_bytes())
        data[-100] ^= 1
        (place / name).write_bytes(data)

    return damage


def gone(name: str) -> Damage:
    """Delete a file or a folder."""
    return lambda place: shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()


def text(name: str, content: str) -> Damage:
    """Put other text into a file."""
    return lambda place: (place / name).write_text(content)


def copied(source: str, name: str) -> Damage:
    """Put another file in its place."""
    return lambda place: shutil.copy(place / source, place / name)


def model_config(**changes: object) -> Damage:
    """Let the meta file of the checkpoint tell of another model."""

    def damage(place: Path) -> None:
        path = place / CHECKPOINT / "meta.json"
        meta = json.loads(path.read_text())
        meta["model_config"] |= changes
        path.write_text(json.dumps(meta))

    return damage


def shard_without_rows(place: Path) -> None:
    """The first shard holds no text, and the list of the shards knows it."""
    path, listed = place / "shards" / "shard_00000.parquet", place / "shards" / "shards.json"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    listed.write_text(listed.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))


def nothing(place: Path) -> None:
    """The inputs are whole, and do not fit each other."""


# -- checkpoints -----------------------------------------------------------

CHECKPOINT = f"run/checkpoints/{STEP}"
MODEL, META = f"{CHECKPOINT}/model.safetensors", f"{CHECKPOINT}/meta.json"

USING: dict[str, tuple[object, ...]] = {
    "eval": ("eval", CHECKPOINT, "--data", "data"),
    "sample": ("sample", CHECKPOINT, "def ", "--data", "data", "--max-tokens", 1),
    "export": ("checkpoint", "export", CHECKPOINT, "--format", "nanochat", "--out", "new"),
}

CHECKPOINTS: dict[str, tuple[Damage, int, tuple[str, ...]]] = {
    "missing": (gone(CHECKPOINT), NOT_FOUND, ("no checkpoint in", STEP, "give a folder such as")),
    "without meta": (gone(META), NOT_FOUND, ("meta.json is missing",)),
    "without weights": (gone(MODEL), NOT_FOUND, ("has no model.safetensors", "use another one")),
    "truncated": (cut(MODEL), FAILURE, ("model.safetensors ends inside", "truncated; fetch it again")),
    "empty weights": (cut(MODEL, 0), FAILURE, ("model.safetensors is truncated or not", "fetch it again")),
    "one bit wrong": (flip(MODEL), FAILURE, ("have digest", "but meta.json has", "use another one")),
    "pickled weights": (copied("theirs/model_000002.pt", MODEL), FAILURE, ("not a safetensors file",)),
    "truncated meta": (cut(META), FAILURE, ("meta.json is not JSON", "use another one")),
    "foreign meta": (text(META, '{"step": 2}'), FAILURE, ("does not have the format curtail-checkpoint-1",)),
    "another vocabulary": (model_config(vocab_size=400), FAILURE, ("lm_head.weight", "another model")),
    "impossible model": (model_config(n_head=7), FAILURE, ("meta.json", "7 heads")),
}


@pytest.mark.parametrize("command", USING)
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used(place, capsys, case, command):
    damage, code, words = CHECKPOINTS[case]
    damage(place)
    refused(place, capsys, code, words, *USING[command])


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("theirs", ("a checkpoint of nanochat", "`curtail checkpoint import`")),
        ("run", ("give one of the folders in", "run/checkpoints")),
        (META, ("meta.json is missing",)),
    ],
)
def test_a_folder_that_is_no_checkpoint_of_ours(place, capsys, folder, words):
    refused(place, capsys, NOT_FOUND, words, "eval", folder, "--data", "data")


def test_an_export_into_files_that_are_there(place, capsys):
    words = ("model_000002.pt already exists", "--out")
    refused(place, capsys, USAGE, words, *USING["export"][:-1], "theirs")
    refused(place, capsys, USAGE, ("tokenizer.json is not a folder",), *USING["export"][:-1], "other/tokenizer.json")


# -- tokenizers and data of a checkpoint -----------------------------------

OTHER, TOKENIZER = "pass the data that it was trained on with --data", "data/tokenizer.json"

DATA: dict[str, tuple[str, Damage, int, tuple[str, ...]]] = {
    "no data": ("eval", gone("data"), NOT_FOUND, ("no manifest.json in data", "--data")),
    "no data to sample": ("sample", gone("data"), NOT_FOUND, ("no tokenizer.json in data", "--data")),
    "another tokenizer": ("sample", copied("other/tokenizer.json", TOKENIZER), FAILURE, ("was trained with", OTHER)),
    "another tokenizer to score": ("eval", copied("other/tokenizer.json", TOKENIZER), FAILURE, ("tokenizer", OTHER)),
    "another vocabulary": ("sample", copied("small/tokenizer.json", TOKENIZER), FAILURE, ("was trained with", OTHER)),
    "truncated tokenizer": ("sample", cut(TOKENIZER), FAILURE, ("tokenizer.json", "truncated", "`curtail tokenizer")),
    "foreign tokenizer": ("eval", copied(META, TOKENIZER), FAILURE, ("it is not a tokenizer file",)),
    "truncated manifest": (
        "eval",
        cut("data/manifest.json"),
        FAILURE,
        ("manifest.json", "truncated", "create it again"),
    ),
    "empty tokens": ("eval", cut("data/validation_00000.bin", 0), FAILURE, ("validation_00000.bin", "bytes long")),
    "wrong tokens": ("eval", flip("data/validation_00000.bin"), FAILURE, ("does not match the manifest",)),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_do_not_belong_to_the_checkpoint(place, capsys, case):
    command, damage, code, words = DATA[case]
    damage(place)
    refused(place, capsys, code, words, *USING[command])


def test_a_tokenizer_beside_the_weights_is_enough_to_sample(place, capsys):
    imported = ("checkpoint", "import", "theirs", "--tokenizer", "data", "--out", "imported")
    assert call(*imported) == 0 and call("sample", "imported", "def ", "--max-tokens", 1) == 0
    shutil.copy("other/tokenizer.json", "imported/tokenizer.json")
    capsys.readouterr()
    refused(place, capsys, FAILURE, ("was trained with the tokenizer",), "sample", "imported", "def ")


# -- training --------------------------------------------------------------

PROGRESS, STATE = f"{CHECKPOINT}/progress.json", f"{CHECKPOINT}/optimizer.safetensors"
NONE_WHOLE = ("none of the 1 checkpoints", "give another folder with --out")

TRAINING: dict[str, tuple[Damage, tuple[object, ...], int, tuple[str, ...]]] = {
    "no data": (gone("data"), (), NOT_FOUND, ("no manifest.json in", "`curtail data prepare`")),
    "too small a data set": (nothing, ("--batch-samples", 10**6), FAILURE, ("training samples", "import more text")),
    "vocab mismatch": (nothing, ("--preset", "d4-test"), USAGE, ("512 ids", "4096", "--vocab-size 4096")),
    "empty tokens": (cut("data/train_00000.bin", 0), (), FAILURE, ("train_00000.bin", "wrong size", "copy it")),
    "truncated manifest": (cut("data/manifest.json"), (), FAILURE, ("manifest.json", "create it again")),
    "another tokenizer": (copied("other/tokenizer.json", TOKENIZER), (), FAILURE, ("were made with the tokenizer",)),
    "no tokenizer": (gone(TOKENIZER), (), NOT_FOUND, ("no tokenizer at", "tokenizer.json")),
    "nothing to score": (
        gone("data/validation_00000.bin"), ("--eval-every", 2), FAILURE, ("validation_00000.bin is missing",)
    ),
    "a file as its folder": (nothing, ("--out", "run/metrics.jsonl"), USAGE, ("is not a folder", "--out")),
    "resumed from truncated weights": (cut(MODEL), ("--out", "run"), FAILURE, NONE_WHOLE),
    "resumed from wrong weights": (flip(MODEL), ("--out", "run"), FAILURE, NONE_WHOLE),
    "resumed without a state": (gone(STATE), ("--out", "run"), FAILURE, NONE_WHOLE),
    "resumed from a truncated state": (cut(STATE), ("--out", "run"), FAILURE, NONE_WHOLE),
    "resumed from truncated facts": (cut(PROGRESS), ("--out", "run"), FAILURE, NONE_WHOLE),
    "resumed from a foreign meta file": (text(META, "{}"), ("--out", "run"), FAILURE, NONE_WHOLE),
    "resumed as another run": (nothing, ("--out", "run", "--seed", 2), FAILURE, ("another seed, 1 instead of 2",)),
    "begun again": (nothing, ("--out", "run", "--no-resume"), CONFLICT, ("has the checkpoints of another run",)),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINING)
def test_training_that_cannot_begin_or_go_on(place, capsys, case):
    damage, flags, code, words = TRAINING[case]
    damage(place)
    refused(place, capsys, code, words, *TRAIN, "--data", "data", "--out", "new", "--steps", 4, *flags)


def test_a_run_is_not_continued_with_another_tokenizer(place, capsys):
    prepared = ("data", "prepare", "shards", "--tokenizer", "other", "--sequence-len", 64, "--out", "others")
    assert call(*prepared) == 0
    words = ("was trained with another tokenizer", "the same settings as before")
    refused(place, capsys, FAILURE, words, *TRAIN, "--data", "others", "--out", "run", "--steps", 4)


# -- nanochat's checkpoints ------------------------------------------------

PT, FACTS = "theirs/model_000002.pt", "theirs/meta_000002.json"

IMPORTS: dict[str, tuple[Damage, str, tuple[object, ...], int, tuple[str, ...]]] = {
    "missing": (gone("theirs"), "theirs", (), NOT_FOUND, ("no checkpoint theirs", "give a model's folder of nanochat")),
    "ours": (nothing, CHECKPOINT, (), NOT_FOUND, ("no checkpoint of nanochat", "a checkpoint of curtail")),
    "another step": (nothing, "theirs", ("--step", 7), NOT_FOUND, ("no model_000007.pt", "the steps 2")),
    "another name": (nothing, MODEL, (), FAILURE, ("is not called model_000123.pt",)),
    "truncated": (cut(PT), "theirs", (), FAILURE, ("model_000002.pt is truncated", "fetch it again")),
    "empty": (cut(PT, 0), "theirs", (), FAILURE, ("model_000002.pt is truncated", "fetch it again")),
    "one bit wrong": (flip(PT), "theirs", (), FAILURE, ("model_000002.pt is damaged", "fetch it again")),
    "without facts": (gone(FACTS), "theirs", (), NOT_FOUND, ("meta_000002.json", "fetch it, too")),
    "truncated facts": (cut(FACTS), "theirs", (), FAILURE, ("meta_000002.json is not JSON", "fetch it again")),
    "foreign facts": (text(FACTS, "[]"), "theirs", (), FAILURE, ("does not describe the model",)),
    "another tokenizer": (nothing, "theirs", ("--tokenizer", "other"), FAILURE, ("trained with the tokenizer", "give")),
    "vocab mismatch": (
        nothing, "theirs", ("--tokenizer", "small"), FAILURE, ("has 512 token ids, the tokenizer has 400",)
    ),
    "no tokenizer": (nothing, "theirs", ("--tokenizer", "shards"), NOT_FOUND, ("no tokenizer at shards",)),
    "truncated tokenizer": (
        cut("other/tokenizer.json"), "theirs", ("--tokenizer", "other"), FAILURE, ("other/tokenizer.json", "truncated")
    ),
    "into a checkpoint": (nothing, "theirs", ("--out", CHECKPOINT), USAGE, ("already exists", "--out")),
    "over a tokenizer": (
        nothing, "theirs", ("--tokenizer", "data", "--out", "other"), USAGE, ("tokenizer.json already exists",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPORTS)
def test_a_checkpoint_of_nanochat_that_cannot_be_imported(place, capsys, case):
    damage, path, flags, code, words = IMPORTS[case]
    damage(place)
    refused(place, capsys, code, words, "checkpoint", "import", path, "--out", "new", *flags)


# -- shards ----------------------------------------------------------------

SHARD = "shards/shard_00000.parquet"
PREPARE = ("data", "prepare", "shards", "--tokenizer", "data", "--sequence-len", 64)

SHARDS: dict[str, tuple[Damage, tuple[object, ...], int, tuple[str, ...]]] = {
    "no shards": (gone("shards"), (), NOT_FOUND, ("no data set in shards", "`curtail data import`")),
    "a file as the folder": (lambda place: (gone("shards")(place), text("shards", "x")(place)), (), NOT_FOUND,
                             ("no data set in shards",)),
    "truncated list": (cut("shards/shards.json"), (), FAILURE, ("shards.json is truncated", "import or fetch")),
    "empty shard": (cut(SHARD, 0), (), FAILURE, ("shard_00000.parquet does not match", "copy it again")),
    "truncated shard": (cut(SHARD), (), FAILURE, ("shard_00000.parquet does not match", "copy it again")),
    "shard without rows": (shard_without_rows, (), FAILURE, ("shard_00000.parquet is empty", "leave it out")),
    "missing shard": (gone(SHARD), (), FAILURE, ("shard_00000.parquet is missing", "copy the shard to that place")),
    "empty validation": (cut("shards/validation.parquet", 0), (), FAILURE, ("validation.parquet does not match",)),
    "too small a data set": (nothing, ("--sequence-len", 10**7), FAILURE, ("one sample needs", "import more text")),
    "no tokenizer": (nothing, ("--tokenizer", "shards"), NOT_FOUND, ("no tokenizer at", "`curtail tokenizer train`")),
    "truncated tokenizer": (cut("small/tokenizer.json"), ("--tokenizer", "small"), FAILURE, ("truncated", "again")),
    "foreign tokenizer": (nothing, ("--tokenizer", META), FAILURE, ("it is not a tokenizer file",)),
}  # fmt: skip


@pytest.mark.parametrize("out", ["data", "new"])
@pytest.mark.parametrize("case", SHARDS)
def test_shards_that_cannot_be_packed(place, capsys, case, out):
    """Neither into a new folder nor over tokens that are there: those stay."""
    damage, flags, code, words = SHARDS[case]
    damage(place)
    refused(place, capsys, code, words, *PREPARE, "--out", out, *flags)


# -- as processes ----------------------------------------------------------

PROCESSES: dict[str, tuple[Damage, tuple[object, ...], int]] = {
    "eval": (cut(MODEL), USING["eval"], FAILURE),
    "sample": (copied("other/tokenizer.json", TOKENIZER), USING["sample"], FAILURE),
    "export": (gone(CHECKPOINT), USING["export"], NOT_FOUND),
    "import": (cut(PT), ("checkpoint", "import", "theirs", "--out", "new"), FAILURE),
    "train": (cut(STATE), (*TRAIN, "--data", "data", "--out", "run", "--steps", 4), FAILURE),
    "prepare": (cut(SHARD), (*PREPARE, "--out", "data"), FAILURE),
}


@pytest.mark.parametrize("case", PROCESSES)
def test_a_process_ends_with_the_code_and_one_line(place, command, case):
    damage, arguments, code = PROCESSES[case]
    damage(place)
    before = contents(place)
    done = command(*arguments, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("curtail: ")] == done.stderr.splitlines()[-1:]
    assert contents(place) == before
