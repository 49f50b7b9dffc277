"""Checkpoints of nanochat: the same logits as nanochat's own, nothing lost on the way, bad files refused.

The file `data/golden_logits.json` was made with nanochat itself at six commits.
"""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from curtail.__main__ import run
from curtail.errors import CheckpointError, DiskError, NotFound
from curtail.system.disk import SystemDisk
from nanochat.checkpoint import CheckpointMeta, read_checkpoint, write_checkpoint
from nanochat.gpt import GPT
from nanochat.presets import GPTConfig, config_for, from_json, preset, weight_shapes
from nanochat.tokenizer import Tokenizer
from nanochat.upstream_checkpoint import Given, read_nanochat, write_nanochat, write_safetensors
from nanochat.upstream_versions import infer_config, reader_of
from nanochat.weights import digest, from_model, load_into, read_tensors

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_logits.json").read_text())
CASES = {case["commit"]: case for case in GOLDEN["cases"]}
HEAD, LAUNCH, MARCH = "92d63d4", "3a5e0bc", "aba30cb"
TINY = GPTConfig(8, 64, 2, 2, 1, 32)
DISK = SystemDisk()


def waves(shapes):
    """The weights that the golden logits belong to."""
    state = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        count = int(np.prod(shape))
        scale = 1.0 if name == "lm_head.weight" else 0.1 if len(shape) == 2 else 0.5
        wave = scale * torch.sin(0.7 * torch.arange(count, dtype=torch.float64) ** 1.5 + number)
        state[name] = (wave.view(shape) + (name == "resid_lambdas")).float()
    return state


def theirs(folder, case, step=7, prefix="", **meta):
    """A folder of nanochat with one checkpoint."""
    folder.mkdir(exist_ok=True)
    state = {prefix + name: tensor for name, tensor in waves(case["shapes"]).items()}
    torch.save(state, folder / f"model_{step:06d}.pt")
    values = {"step": step, "val_bpb": 0.9, "model_config": case["model_config"], "user_config": {}} | meta
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(values))
    return folder


def ours(folder, config=TINY, seed=0, **facts):
    """A folder with one of our checkpoints."""
    folder.mkdir()
    model = GPT(config)
    model.init_weights(seed)
    values = {"tokens": 4096, "version": 12, "tokenizer_digest": "ab" * 32, "manifest_digest": "cd" * 32} | facts
    meta = CheckpointMeta(preset=None, model_config=config, weights_digest="", created="2026-01-12", **values)
    return write_checkpoint(folder, from_model(model), meta, DISK)


def logits_of(config, weights):
    model = GPT(config)
    load_into(model, weights)
    with torch.no_grad():
        return model((torch.arange(300)[None] ** 2) % 97)[0]


# -- the same numbers ------------------------------------------------------


@pytest.mark.parametrize("commit", CASES)
def test_an_imported_model_has_the_logits_of_nanochat(commit, tmp_path):
    given = Given(softcap=20.0) if commit == MARCH else Given()
    foreign = read_nanochat(theirs(tmp_path, CASES[commit]), given=given)
    found = logits_of(foreign.config, foreign.weights)[GOLDEN["rows"], :: GOLDEN["every"]]
    torch.testing.assert_close(found, torch.tensor(CASES[commit]["logits"]), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("commit", "expected"),
    [
        (LAUNCH, {"window_pattern": "L"}),
        ("8203efa", {}),
        ("e7ed208", {"value_embeds": True, "ve_gate_channels": 32, "ve_gate_scale": 2.0}),
        ("6ed7d1d", {"value_embeds": True, "rope_base": 1e5, "qk_scale": 1.15, "short_window": 256}),
        (
            HEAD,
            {
                "value_embeds": True, "rope_base": 1e5, "qk_scale": 1.2, "short_window": 128, "smear": True,
                "backout": True, "init_profile": "2026-03",
            },
        ),
    ],
)  # fmt: skip
def test_what_nanochat_does_not_say_follows_from_the_weights(commit, expected, tmp_path):
    foreign = read_nanochat(theirs(tmp_path, CASES[commit]))
    assert foreign.config == replace(GPTConfig(512, 100, 3, 2, 1, 32, window_pattern="SSL"), **expected)


def test_published_d20_models_are_recognised():
    for name in ("d20-561m", "d20-ve"):
        config = preset(name)
        numbers = {key: getattr(config, key) for key in CASES[LAUNCH]["model_config"]}
        assert infer_config(numbers | {"window_pattern": config.window_pattern}, weight_shapes(config))[0] == config


def test_the_user_can_say_what_the_files_do_not(tmp_path):
    given = Given(rope_base=5000.0, qk_scale=1.1, softcap=20.0, short_window=9)
    config = read_nanochat(theirs(tmp_path, CASES[HEAD]), given=given).config
    assert (config.rope_base, config.qk_scale, config.softcap, config.short_window) == (5000.0, 1.1, 20.0, 9)


def test_what_a_launch_checkpoint_lacks_is_added_without_effect(tmp_path):
    weights = read_nanochat(theirs(tmp_path, CASES[LAUNCH])).weights
    assert weights["resid_lambdas"].tolist() == [1, 1, 1]
    assert weights["x0_lambdas"].tolist() == [0, 0, 0]
    assert weights["lm_head.weight"].shape == (128, 32)
    assert not weights["lm_head.weight"][100:].any()


def test_names_that_torch_compile_changed_are_put_right(tmp_path):
    plain = read_nanochat(theirs(tmp_path / "a", CASES[HEAD]))
    compiled = read_nanochat(theirs(tmp_path / "b", CASES[HEAD], prefix="_orig_mod."))
    assert digest(plain.weights) == digest(compiled.weights)


def test_half_precision_becomes_fp32_without_rounding(tmp_path):
    state = waves(CASES[HEAD]["shapes"])
    state["transformer.wte.weight"] = state["transformer.wte.weight"].bfloat16()
    state["value_embeds.0.weight"] = state["value_embeds.0.weight"].half()
    theirs(tmp_path, CASES[HEAD])
    torch.save(state, tmp_path / "model_000007.pt")
    weights = read_nanochat(tmp_path).weights
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    for name, tensor in state.items():
        assert torch.equal(torch.from_numpy(weights[name].copy()), tensor.float())


def test_tokens_are_known_where_the_batch_is(tmp_path):
    assert read_nanochat(theirs(tmp_path / "a", CASES[HEAD], total_batch_size=1024)).tokens == 7 * 1024
    launch = theirs(tmp_path / "b", CASES[LAUNCH], user_config={"total_batch_size": 512})
    assert read_nanochat(launch).tokens == 7 * 512
    assert read_nanochat(theirs(tmp_path / "c", CASES[LAUNCH], user_config=None)).tokens == 0


def test_the_last_step_is_taken_or_the_one_that_is_named(tmp_path):
    for step in (900, 1000000, 20):
        theirs(tmp_path, CASES[HEAD], step=step)
    assert read_nanochat(tmp_path).step == 1000000
    assert read_nanochat(tmp_path, step=900).step == 900
    assert read_nanochat(tmp_path / "model_000020.pt").step == 20
    with pytest.raises(NotFound, match=r"model_000021\.pt"):
        read_nanochat(tmp_path, step=21)
    with pytest.raises(CheckpointError, match=r"model_000021\.pt"):
        read_nanochat(tmp_path / "model_000020.pt", step=21)


# -- there and back --------------------------------------------------------

FORMS = {
    "plain": TINY,
    "launch": replace(TINY, lambdas=False),
    "padded": replace(TINY, vocab_size=50),
    "full": replace(config_for("ve", 2, 60, 16), n_head=4, n_kv_head=2, n_embd=32),
    "of no nanochat": replace(TINY, smear=True, qk_scale=1.3, window_pattern="SL", short_window=3),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_export_comes_back_bit_for_bit(form, tmp_path):
    written = ours(tmp_path / "ours", FORMS[form])
    _, weights = read_checkpoint(tmp_path / "ours")
    (tmp_path / "out").mkdir()
    files = write_nanochat(tmp_path / "out", written, weights, DISK)
    assert [file.name for file in files] == ["model_000012.pt", "meta_000012.json"]
    assert set((tmp_path / "out").iterdir()) == set(files)
    back = read_nanochat(tmp_path / "out")
    assert back.config == FORMS[form]
    assert digest(back.weights) == written.weights_digest
    assert (back.step, back.tokens) == (12, 4096)
    assert (back.tokenizer_digest, back.manifest_digest) == (written.tokenizer_digest, written.manifest_digest)


def test_an_export_is_what_nanochat_loads(tmp_path):
    written = ours(tmp_path / "ours", FORMS["full"])
    model, meta = write_nanochat(tmp_path, written, read_checkpoint(tmp_path / "ours")[1], DISK)
    state = torch.load(model, weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == weight_shapes(FORMS["full"])
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    # nanochat builds its GPTConfig from exactly these
    assert json.loads(meta.read_text())["model_config"] == {
        "sequence_len": 16, "vocab_size": 60, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32,
        "window_pattern": "SSSL",
    }  # fmt: skip


def test_it_is_known_which_nanochat_computes_the_same():
    assert reader_of(preset("d20-ve")) == "nanochat since 2026-03-14"
    assert reader_of(preset("d20-launch")) == reader_of(TINY) == "nanochat from its launch to 2026-01-16"
    assert reader_of(replace(TINY, short_window=3)) == reader_of(TINY)  # no layer is short
    assert reader_of(FORMS["of no nanochat"]) is None
    assert reader_of(replace(TINY, softcap=20.0)) is None
    assert reader_of(replace(preset("d20-ve"), short_window=640)) is None
    assert reader_of(replace(TINY, value_embeds=True, ve_gate_channels=3)) is None


def test_a_safetensors_export_describes_itself_and_others_can_read_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    written = ours(tmp_path / "ours", FORMS["full"])
    (file,) = write_safetensors(tmp_path, written, read_checkpoint(tmp_path / "ours")[1], DISK)
    assert digest(safetensors.load_file(file)) == written.weights_digest
    _, facts = read_tensors(file)
    assert from_json(facts["model_config"]) == FORMS["full"]
    assert (facts["format"], facts["tokens"], facts["version"]) == ("pt", "4096", "12")


def test_a_failed_export_leaves_no_file(tmp_path):
    class Full(SystemDisk):
        def publish(self, op, temp, path):
            raise DiskError(op)

    written = ours(tmp_path / "ours")
    (tmp_path / "out").mkdir()
    with pytest.raises(DiskError, match="EXPORT_MODEL"):
        write_nanochat(tmp_path / "out", written, read_checkpoint(tmp_path / "ours")[1], Full())
    assert not list((tmp_path / "out").iterdir())


# -- bad files -------------------------------------------------------------


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    file = theirs(tmp_path, CASES[HEAD]) / "model_000007.pt"
    whole = file.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            read_nanochat(tmp_path)


def test_one_wrong_bit_is_refused(tmp_path):
    file = theirs(tmp_path, CASES[HEAD]) / "model_000007.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged|truncated"):
        read_nanochat(tmp_path)


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


def test_no_code_in_a_checkpoint_runs(tmp_path, capsys):
    theirs(tmp_path, CASES[HEAD])
    torch.save({"a": Harmful()}, tmp_path / "model_000007.pt")
    with pytest.raises(CheckpointError, match="other objects than tensors"):
        read_nanochat(tmp_path)
    (tmp_path / "model_000007.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError, match=r"torch\.save"):
        read_nanochat(tmp_path)
    assert "must not run" not in capsys.readouterr().out


def test_another_archive_is_refused(tmp_path):
    file = theirs(tmp_path, CASES[HEAD]) / "model_000007.pt"
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(file, "w", kind) as archive:
            archive.writestr("archive/data.pkl", b"no pickle" * 100)
        with pytest.raises(CheckpointError):
            read_nanochat(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "does not contain a model"),
        ({}, "does not contain a model"),
        ({"state": {"w": torch.zeros(2)}}, "'state' in .* is not a weight"),
        ({3: torch.zeros(2)}, "3 in .* is not a weight"),
        ({"w": torch.zeros(2, dtype=torch.float64)}, r"w in .* is torch\.float64"),
        ({"w": torch.zeros(2, dtype=torch.int64)}, r"w in .* is torch\.int64"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "not a weight|other objects than tensors"),
        ({"w": torch.zeros(2)}, "lacks lm_head.weight"),
        ({"h.attn.ve_gate.weight": torch.zeros(())}, "of no known version of nanochat"),
    ],
)
def test_what_is_no_model_is_refused(content, says, tmp_path):
    theirs(tmp_path, CASES[HEAD])
    torch.save(content, tmp_path / "model_000007.pt")
    with pytest.raises(CheckpointError, match=says):
        read_nanochat(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_config": None}, "model_config is missing"),
        ({"model_config": {"n_layer": 3}}, "does not describe"),
        ({"model_config": CASES[HEAD]["model_config"] | {"dropout": 0}}, "does not describe"),
        ({"model_config": CASES[HEAD]["model_config"] | {"n_layer": True}}, "does not describe"),
        ({"model_config": CASES[HEAD]["model_config"] | {"window_pattern": 3}}, "window_pattern"),
        ({"model_config": CASES[HEAD]["model_config"] | {"window_pattern": "X"}}, "window pattern"),
        ({"model_config": CASES[HEAD]["model_config"] | {"n_head": 3}}, "3 heads"),
        ({"model_config": CASES[HEAD]["model_config"] | {"n_layer": 5}}, "has shape"),
        ({"model_config": CASES[HEAD]["model_config"] | {"vocab_size": 200}}, "has shape"),
        ({"curtail": 3}, "damaged"),
        ({"curtail": {"tokens": 1, "tokenizer_digest": None, "manifest_digest": None}}, "not a JSON object"),
    ],
)
def test_a_meta_file_that_does_not_fit_is_refused(change, says, tmp_path):
    theirs(tmp_path, CASES[HEAD], **change)
    with pytest.raises(CheckpointError, match=says):
        read_nanochat(tmp_path)


def test_a_meta_file_of_another_step_is_refused(tmp_path):
    (theirs(tmp_path, CASES[HEAD], step=8) / "meta_000008.json").rename(tmp_path / "meta_000007.json")
    (tmp_path / "model_000008.pt").rename(tmp_path / "model_000007.pt")
    with pytest.raises(CheckpointError, match="for step 8, not 7"):
        read_nanochat(tmp_path)


def test_an_export_that_contradicts_itself_is_refused(tmp_path):
    written = ours(tmp_path / "ours")
    _, meta = write_nanochat(tmp_path, written, read_checkpoint(tmp_path / "ours")[1], DISK)
    values = json.loads(meta.read_text())
    values["model_config"]["n_layer"] = 3
    meta.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="two different models"):
        read_nanochat(tmp_path)


def test_value_embeddings_of_an_unknown_kind_are_refused(tmp_path):
    state = waves(CASES["6ed7d1d"]["shapes"])
    theirs(tmp_path, CASES["6ed7d1d"])
    torch.save({name: t for name, t in state.items() if "ve_gate" not in name}, tmp_path / "model_000007.pt")
    with pytest.raises(CheckpointError, match="of no known version of nanochat"):
        read_nanochat(tmp_path)


def test_missing_files_are_not_found(tmp_path):
    with pytest.raises(NotFound):
        read_nanochat(tmp_path / "none")
    with pytest.raises(NotFound, match="no checkpoint of nanochat"):
        read_nanochat(tmp_path)
    (theirs(tmp_path, CASES[HEAD]) / "meta_000007.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_nanochat(tmp_path)
    (tmp_path / "meta_000007.json").unlink()
    with pytest.raises(NotFound, match=r"meta_000007\.json"):
        read_nanochat(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not called"):
        read_nanochat(tmp_path / "weights.pt")


# -- the commands ----------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of 300 ids, in a folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer.train([" ".join(str(number) for number in range(4000))], 300)
    made.save(folder / "tokenizer.json")
    return made, folder


def test_import_then_export_on_the_command_line(tmp_path, capsys):
    theirs(tmp_path / "theirs", CASES[HEAD], total_batch_size=1000)
    assert run(["checkpoint", "import", str(tmp_path / "theirs"), "--out", str(tmp_path / "in")]) == 0
    said = capsys.readouterr().out
    assert "nanochat since 2026-03-14: rotary base 100000, queries and keys times 1.2, softcap 15" in said
    assert "short windows of 128" in said and said.count("\n") == 1
    meta, weights = read_checkpoint(tmp_path / "in")
    assert (meta.version, meta.tokens, meta.preset, meta.tokenizer_digest) == (7, 7000, None, None)
    export = ["checkpoint", "export", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--format"]
    assert run([*export, "nanochat"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == [str(tmp_path / "out" / name) for name in ("model_000007.pt", "meta_000007.json")]
    assert captured.err.startswith("nanochat since 2026-03-14 computes the same")
    state = torch.load(tmp_path / "out" / "model_000007.pt", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in waves(CASES[HEAD]["shapes"]).items())
    assert len(state) == len(weights)
    assert run([*export, "safetensors"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'model.safetensors'}\n"
    assert run(["checkpoint", "import", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    assert read_checkpoint(tmp_path / "back")[0].weights_digest == meta.weights_digest


def test_nothing_is_written_over(tmp_path, capsys):
    theirs(tmp_path / "theirs", CASES[HEAD])
    bring = ["checkpoint", "import", str(tmp_path / "theirs"), "--out", str(tmp_path / "in")]
    assert [run(bring), run(bring)] == [0, 2]
    for form in ("nanochat", "safetensors"):
        send = ["checkpoint", "export", str(tmp_path / "in"), "--format", form, "--out", str(tmp_path / "out")]
        assert [run(send), run(send)] == [0, 2]
    assert run([*bring[:-1], str(tmp_path / "theirs" / "model_000007.pt")]) == 2
    assert "give another folder with --out" in capsys.readouterr().err


def test_flags_override_what_is_inferred(tmp_path, capsys):
    theirs(tmp_path / "theirs", CASES[MARCH])
    bring = ["checkpoint", "import", str(tmp_path / "theirs"), "--out", str(tmp_path / "in"), "--softcap", "20"]
    assert run([*bring, "--step", "7", "--rope-base", "20000", "--qk-scale", "1.1", "--short-window", "5"]) == 0
    config = read_checkpoint(tmp_path / "in")[0].model_config
    assert (config.softcap, config.rope_base, config.qk_scale, config.short_window) == (20.0, 20000.0, 1.1, 5)
    bring = ["checkpoint", "import", str(tmp_path / "theirs"), "--out", str(tmp_path / "other"), "--softcap"]
    assert [run([*bring, "-1"]), run([*bring, "nan"])] == [2, 2]
    assert "softcap must be positive" in capsys.readouterr().err


def test_a_tokenizer_goes_with_the_weights_if_it_fits(tmp_path, tokenizer, capsys):
    made, folder = tokenizer
    written = ours(tmp_path / "ours", replace(TINY, vocab_size=300), tokenizer_digest=made.digest)
    write_nanochat(tmp_path, written, read_checkpoint(tmp_path / "ours")[1], DISK)
    bring = ["checkpoint", "import", str(tmp_path), "--tokenizer", str(folder), "--out"]
    assert run([*bring, str(tmp_path / "in")]) == 0
    assert read_checkpoint(tmp_path / "in")[0].tokenizer_digest == made.digest
    assert Tokenizer.load(tmp_path / "in" / "tokenizer.json").digest == made.digest


@pytest.mark.parametrize(
    ("vocab", "says"), [(299, "has 299 token ids, the tokenizer has 300"), (300, "was trained with")]
)
def test_a_tokenizer_of_another_model_is_refused(vocab, says, tmp_path, tokenizer, capsys):
    written = ours(tmp_path / "ours", replace(TINY, vocab_size=vocab))
    write_nanochat(tmp_path, written, read_checkpoint(tmp_path / "ours")[1], DISK)
    bring = ["checkpoint", "import", str(tmp_path), "--tokenizer", str(tokenizer[1]), "--out"]
    assert run([*bring, str(tmp_path / "in")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "in").exists()
