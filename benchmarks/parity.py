"""What training at several sites costs in loss: against one site, and against one site with a larger batch.

All runs of a seed begin with the same weights and have the same token budget, the
same samples in the same order, and rates by global tokens. One thing at a time is
changed around a base point: 2 sites, 30 inner steps, inner state kept, outer step
(1, 0), int8. What is compared is at the end: nats per token of held-out text. A
run is simulated in one process (`parity_run.py`) on one thread; a finished one is
a line in a file and is not repeated.

    python benchmarks/parity.py --all --out parity.jsonl
    python benchmarks/parity.py --rows-of long --out parity.jsonl
    python benchmarks/parity.py --table parity.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.parity_run import Data, Scale, Setting, simulate  # noqa: E402
from nanochat.presets import GPTConfig  # noqa: E402

VOCABULARY, SEQUENCE = 512, 64
BATCH, STEPS = 8, 2560  # of one site: samples of an inner step; steps until one site has spent the budget
SCALE = Scale(
    GPTConfig(SEQUENCE, VOCABULARY, n_layer=2, n_head=1, n_kv_head=1, n_embd=32),
    token_budget=STEPS * BATCH * SEQUENCE,
    # rates fit for this model: the reference's would be a twentieth of what one site trains best with
    settings_of_recipe=("reference_batch_tokens=2048", "matrix_decay=0.02"),
)
SEEDS = (1, 2, 3)

SCRIPT = (
    (10, ""), (60, "A"), (60, "AB"), (50, "ABC"), (30, "BC"), (10, ""), (20, "C"), (50, "AC"),
    (30, "ABC"), (10, "A"), (10, ""), (15, "BC"),
)  # fmt: skip
"""A course of PAUSED, LOCAL and FEDERATED with 0 to 3 sites, in inner steps; it goes round."""

INSTALLED = frozenset({"site-packages", "dist-packages"})
TEXTS = {"library": INSTALLED | {"test", "tests", "idlelib", "lib2to3"}, "library_and_tests": INSTALLED}
"""What is left out of the standard library's sources, by the name of the rest."""

BASE = Setting(batch_samples=BATCH)
ONE, THREE = replace(BASE, sites=1), replace(BASE, sites=3)
SCRIPTED = replace(BASE, script=SCRIPT)
HALF: dict[str, Any] = {"outer_lr": 0.7, "outer_momentum": 0.5}
JOINT: dict[str, Any] = {"inner_steps": 10, "lr_scaling": 0.5, "momentum_scaling": 0.5}
"""Rates and Muon's memory * sqrt(sites), with the plain mean, as the product does by default."""
LONGER = JOINT | {"momentum_scaling": 1.0}
AHEAD: dict[str, Any] = JOINT | {"inner_steps": 109, "ahead_steps": 9}
"""Overlapped, steps ahead on top of a round's, as in the product. 9 last as long as d20's exchange on 1 Gbit/s."""
AHEAD_OF_30 = AHEAD | {"inner_steps": 39}
BEST = replace(BASE, inner_steps=10, last_outer_lr=1.0, **HALF)
FLEETS = {"2 sites": BASE, "3 sites": THREE, "script": SCRIPTED}


def fleets(table: str, what: str, changes: Mapping[str, Any]) -> dict[str, Setting]:
    """Rows of a table in which two sites, three and the script have the same changes."""
    return {f"{table}{name}, {what}": replace(setting, **changes) for name, setting in FLEETS.items()}


SETTINGS: dict[str, Setting] = {
    "one site": ONE,
    "one site, batch of 2": replace(ONE, batch_samples=2 * BATCH),
    "one site, batch of 3": replace(ONE, batch_samples=3 * BATCH),
    "2 sites (base)": BASE,
    "H 10": replace(BASE, inner_steps=10),
    "H 100": replace(BASE, inner_steps=100),
    "inner state reset": replace(BASE, inner_state="reset"),
    "outer (0.7, 0.5)": replace(BASE, **HALF),
    "outer (0.7, 0.7)": replace(BASE, outer_lr=0.7, outer_momentum=0.7),
    "outer (0.7, 0.9)": replace(BASE, outer_lr=0.7, outer_momentum=0.9),
    "outer (1, 0.5)": replace(BASE, outer_lr=1.0, outer_momentum=0.5),
    "outer (1.41, 0)": replace(BASE, outer_lr=1.41),
    "fp32": replace(BASE, codec="fp32"),
    "int4": replace(BASE, codec="int4", feedback=True),
    "rate * sqrt(2)": replace(BASE, lr_scaling=0.5),
    "batch split": replace(BASE, batch_samples=BATCH // 2, lr_scaling=0.5),
    "H 10, rate * sqrt(2)": replace(BASE, inner_steps=10, lr_scaling=0.5),
    "H 10, outer (0.7, 0.5)": replace(BASE, inner_steps=10, **HALF),
    "H 10, outer (0.7, 0.7)": replace(BASE, inner_steps=10, outer_lr=0.7, outer_momentum=0.7),
    "outer (0.7, 0.5), at last (1, 0)": replace(BASE, last_outer_lr=1.0, **HALF),
    "H 10, outer (0.7, 0.5), at last (1, 0)": BEST,
    "H 10, 1 step ahead": replace(BEST, ahead_steps=1),
    "H 10, 5 steps ahead": replace(BEST, ahead_steps=5),
    "H 10, all steps ahead": replace(BEST, ahead_steps=10),
    "H 10, every 5th of one site late": replace(BEST, late_every=5),
    "H 5, outer (0.7, 0.5)": replace(BASE, inner_steps=5, **HALF),
    "3 sites": THREE,
    "3 sites, outer (0.7, 0.5)": replace(THREE, **HALF),
    "3 sites, outer (0.7, 0.7)": replace(THREE, outer_lr=0.7, outer_momentum=0.7),
    "3 sites, rate * sqrt(3)": replace(THREE, lr_scaling=0.5),
    "3 sites, H 10, outer (0.7, 0.5)": replace(THREE, inner_steps=10, **HALF),
    **fleets("", "joint", JOINT),
    "script": SCRIPTED,
    "script, rate * sqrt(sites)": replace(SCRIPTED, lr_scaling=0.5),
    "script, outer (0.7, 0.5)": replace(SCRIPTED, **HALF),
    "script, H 10, outer (0.7, 0.5)": replace(SCRIPTED, inner_steps=10, **HALF),
    "script, H 10, outer (0.7, 0.5), new optimizers rise": replace(SCRIPTED, inner_steps=10, rewarm=20, **HALF),
    "one site, half of the tokens": replace(ONE, budget_share=0.5),
    "one site, batch of 2, twice the tokens": replace(ONE, batch_samples=2 * BATCH, budget_share=2.0),
    "2 sites, twice the tokens": replace(BASE, budget_share=2.0),
    "H 10, outer (0.7, 0.5), twice the tokens": replace(BASE, inner_steps=10, budget_share=2.0, **HALF),
}
"""Every run of the table by its name."""

LARGE = 32  # samples of a step of one site in the second table: less noise in a gradient, twice as many tokens in all
LARGE_SCALE = replace(SCALE, token_budget=2400 * LARGE * SEQUENCE)
LAST = {"last_outer_lr": 1.0, **HALF}
LARGE_SETTINGS: dict[str, Setting] = {
    name: replace(setting, batch_samples=setting.batch_samples * LARGE // BATCH)
    for name, setting in {
        "large: one site": ONE,
        "large: one site, batch of 2": replace(ONE, batch_samples=2 * BATCH),
        "large: one site, batch of 3": replace(ONE, batch_samples=3 * BATCH),
        "large: 2 sites, H 30": replace(BASE, **LAST),
        "large: 2 sites, H 10": replace(BASE, inner_steps=10, **LAST),
        "large: 3 sites, H 10": replace(THREE, inner_steps=10, **LAST),
        "large: script, H 10": replace(SCRIPTED, inner_steps=10, **LAST),
        **fleets("large: ", "joint", JOINT),
    }.items()
}
"""The second table: outer step (0.7, 0.5), and (1, 0) in the last tenth, as the product does."""

RATE = 0.5  # factor on the rates of the recipe, near the best for one site (see the last two rows)
MANY_STEPS = 7680  # of one site; 12 scripts
MEMORY = (
    "momentum_end=0.983", "momentum_final=0.983",
    *(f"{name}_betas=0.93,0.983" for name in ("unembedding", "embedding", "x0", "adam")),
)  # fmt: skip
"""The optimizers remember three times as many steps: with so little in a step both one site and three are better so."""
MANY_SCALE = Scale(
    GPTConfig(SEQUENCE, VOCABULARY, n_layer=1, n_head=2, n_kv_head=2, n_embd=48),
    token_budget=MANY_STEPS * BATCH * SEQUENCE,
    settings_of_recipe=SCALE.settings_of_recipe + MEMORY,
    validation_tokens=4096 * SEQUENCE,
)
SLOW: dict[str, Any] = {"rate": RATE}
ALONE, TWO = replace(ONE, **SLOW), replace(BASE, **SLOW, **LAST)
TRIO, IN_TURNS = replace(TWO, sites=3), replace(TWO, script=SCRIPT)
MANY_SETTINGS: dict[str, Setting] = {
    "many: one site": ALONE,
    "many: one site, batch of 2": replace(ALONE, batch_samples=2 * BATCH),
    "many: one site, batch of 3": replace(ALONE, batch_samples=3 * BATCH),
    "many: 2 sites, H 10": replace(TWO, inner_steps=10),
    "many: 3 sites, H 10": replace(TRIO, inner_steps=10),
    "many: script, H 10": replace(IN_TURNS, inner_steps=10),
    **fleets("many: ", "joint", SLOW | JOINT),
    "many: one site, batch of 8": replace(ALONE, batch_samples=8 * BATCH),
    "many: 8 sites, H 10": replace(TWO, sites=8, inner_steps=10),
    "many: 8 sites, joint": replace(BASE, sites=8, **SLOW, **JOINT),
    "many: 3 sites, H 3": replace(TRIO, inner_steps=3),
    "many: 2 sites, H 30": TWO,
    "many: 3 sites, H 30": TRIO,
    "many: script, H 30": IN_TURNS,
    "many: 2 sites, H 100": replace(TWO, inner_steps=100),
    "many: 3 sites, H 100": replace(TRIO, inner_steps=100),
    "many: script, H 100": replace(IN_TURNS, inner_steps=100),
    "many: one site, lower rate": replace(ALONE, rate=RATE / 1.41),
    "many: one site, higher rate": replace(ALONE, rate=RATE * 1.41),
}
"""The third table: one layer, many steps with little in each; outer step as in the second."""

LONG_STEPS = 23_040  # of one site; 36 scripts; a run of d20 has 21,400
LONG_SCALE = replace(MANY_SCALE, token_budget=LONG_STEPS * BATCH * SEQUENCE, texts="library_and_tests")
LONG_RATE = 0.25  # the better of the two that were tried, for one site and for three
SLOWER: dict[str, Any] = {"rate": LONG_RATE}
LONG_ALONE = replace(ONE, **SLOWER)
LONG_TWO = replace(BASE, inner_steps=10, **SLOWER, **LAST)
LONG_TRIO = replace(LONG_TWO, sites=3)
LONG_SETTINGS: dict[str, Setting] = {
    "long: one site": LONG_ALONE,
    "long: one site, batch of 2": replace(LONG_ALONE, batch_samples=2 * BATCH),
    "long: one site, batch of 3": replace(LONG_ALONE, batch_samples=3 * BATCH),
    "long: 2 sites, H 10": LONG_TWO,
    "long: 3 sites, H 10": LONG_TRIO,
    "long: script, H 10": replace(LONG_TWO, script=SCRIPT),
    **fleets("long: ", "joint", SLOWER | JOINT),
    **fleets("long: ", "joint, memory * sites", SLOWER | LONGER),
    **fleets("long: ", "joint, H 30", SLOWER | JOINT | {"inner_steps": 30}),
    "long: 3 sites, joint, H 30, memory * sites": replace(THREE, **SLOWER, **LONGER | {"inner_steps": 30}),
    **fleets("long: ", "joint, H 100", SLOWER | JOINT | {"inner_steps": 100}),
    **fleets("long: ", "joint, H 100, memory * sites", SLOWER | LONGER | {"inner_steps": 100}),
    "long: 3 sites, joint, int4": replace(THREE, **SLOWER, **JOINT, codec="int4", feedback=True),
    "long: 3 sites, joint, (0.7, 0.5)": replace(LONG_TRIO, **JOINT),
    "long: 3 sites, H 10, (1, 0)": replace(THREE, inner_steps=10, **SLOWER),
    "long: 3 sites, H 30": replace(LONG_TRIO, inner_steps=30),
    "long: 3 sites, H 100": replace(LONG_TRIO, inner_steps=100),
    "long: one site, higher rate": replace(LONG_ALONE, rate=0.35),
    "long: 3 sites, H 10, higher rate": replace(LONG_TRIO, rate=0.35),
    "long: one site, lower rate": replace(LONG_ALONE, rate=0.18),
}
"""The fourth table: as many steps as a real run has, texts with the library's own tests, else as the third."""

STEADY_MOMENTUM = 0.994  # Muon's, of one site: three times the memory of the fourth table's
STEADY_SCALE = replace(
    LONG_SCALE,
    settings_of_recipe=(
        *(text for text in LONG_SCALE.settings_of_recipe if not text.startswith("momentum_")),
        f"momentum_end={STEADY_MOMENTUM}",
        f"momentum_final={STEADY_MOMENTUM}",
    ),
)
STEADY_SETTINGS: dict[str, Setting] = {
    "steady: one site": LONG_ALONE,
    **fleets("steady: ", "joint", SLOWER | JOINT),
    **fleets("steady: ", "joint, memory * sites", SLOWER | LONGER),
    **fleets("steady: ", "joint, H 30", SLOWER | JOINT | {"inner_steps": 30}),
    **fleets("steady: ", "joint, H 100", SLOWER | JOINT | {"inner_steps": 100}),
    **fleets("steady: ", "joint, H 100, memory * sites", SLOWER | LONGER | {"inner_steps": 100}),
    "steady: 2 sites, joint, 9 steps ahead of 100": replace(BASE, **SLOWER, **AHEAD),
    "steady: 3 sites, joint, 9 steps ahead of 100": replace(THREE, **SLOWER, **AHEAD),
    "steady: 2 sites, joint, 9 steps ahead of 30": replace(BASE, **SLOWER, **AHEAD_OF_30),
    "steady: 3 sites, joint, 9 steps ahead of 30": replace(THREE, **SLOWER, **AHEAD_OF_30),
    "steady: 3 sites, rate * sites^0.75": replace(THREE, **SLOWER, **JOINT | {"lr_scaling": 0.75}),
    "steady: 3 sites, rate * sites^0.75, memory * sites, H 100": replace(
        THREE, **SLOWER, **LONGER | {"lr_scaling": 0.75, "inner_steps": 100}
    ),
    "steady: 3 sites, H 10": LONG_TRIO,
    "steady: script, H 10": replace(LONG_TWO, script=SCRIPT),
    "steady: one site, lower rate": replace(LONG_ALONE, rate=0.18),
    "steady: 3 sites, joint, lower rate": replace(THREE, **JOINT, rate=0.18),
}
"""The fifth table: as the fourth, with a longer memory for all rows."""

TABLES = {
    "first": (SETTINGS, SCALE),
    "large": (LARGE_SETTINGS, LARGE_SCALE),
    "many": (MANY_SETTINGS, MANY_SCALE),
    "long": (LONG_SETTINGS, LONG_SCALE),
    "steady": (STEADY_SETTINGS, STEADY_SCALE),
}
EVERY = {name: (setting, scale) for settings, scale in TABLES.values() for name, setting in settings.items()}


def prepare(folder: Path, left_out: frozenset[str]) -> None:
    """Packed data of the standard library's sources in `folder`, unless they are there.

    Args: left_out: names of folders whose files are not taken.
    """
    from curtail.system.disk import SystemDisk
    from nanochat import dataset, pack
    from nanochat.tokenizer import Tokenizer

    if (folder / "manifest.json").exists():
        return
    library, disk = Path(sysconfig.get_paths()["stdlib"]), SystemDisk()
    texts = sorted(path for path in library.rglob("*.py") if not left_out & set(path.relative_to(library).parts))
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name) / "shards"
        dataset.import_texts(texts, shards, disk=disk, validation_fraction=0.05)
        tokenizer = Tokenizer.train(dataset.iterate_texts(shards), VOCABULARY)
        manifest = pack.prepare(shards, tokenizer, folder, disk=disk, sequence_len=SEQUENCE)
    print(f"{len(texts)} files, {manifest.tokens('train'):,} tokens for training", file=sys.stderr, flush=True)


def data_of(texts: str, folder: Path) -> Data:
    """The data of texts by their name; those of "library" are in `folder`, others beside it."""
    place = folder if texts == "library" else folder.with_name(f"{folder.name}_{texts}")
    prepare(place, TEXTS[texts])
    return Data(place)


def key(setting: Setting, scale: Scale, seed: int) -> str:
    """What makes two runs the same; values that are the default are left out, so that a new one changes no key."""
    changed = {
        field.name: getattr(setting, field.name)
        for field in fields(Setting)
        if getattr(setting, field.name) != field.default
    }
    shared = asdict(scale)
    if scale.texts == "library":
        del shared["texts"]  # came later, as above
    return json.dumps([changed, shared, seed], sort_keys=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The finished runs in a file; a last line that was cut off is passed over."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_off_rest(path: Path) -> None:
    """Take away the beginning of a line that a killed process left."""
    if path.exists():
        text = path.read_bytes()
        os.truncate(path, text.rfind(b"\n") + 1)


def run_all(names: Iterable[str], seeds: Sequence[int], out: Path, data: Path) -> None:
    """Make the runs that `out` lacks, seed by seed, and append a line for each."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    there, names = {line["key"] for line in read(out)}, list(names)
    cut_off_rest(out)
    loaded: dict[str, Data] = {}
    for seed in seeds:
        for name in names:
            setting, scale = EVERY[name]
            if (this := key(setting, scale, seed)) in there:
                continue
            if scale.texts not in loaded:
                loaded[scale.texts] = data_of(scale.texts, data)
            outcome = simulate(setting, scale, loaded[scale.texts], seed)
            line = {"name": name, "seed": seed, "key": this, "load": os.getloadavg()[0], **asdict(outcome)}
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}, seed {seed}: {outcome.loss:.4f} ({outcome.seconds:.0f} s)", file=sys.stderr, flush=True)


def alone_in(settings: Mapping[str, Setting]) -> Setting:
    """The first of the runs of one site with the smallest batch: what the others are compared with."""
    return min((other for other in settings.values() if other.sites == 1 and not other.script), key=_batch)


def _batch(setting: Setting) -> int:
    return setting.batch_samples


def baseline_of(setting: Setting, sites: int, settings: Mapping[str, Setting]) -> str:
    """The name of the run of one site with the batch of `sites` sites and the same tokens; "": it is itself or none."""
    alone = alone_in(settings)
    wanted = replace(alone, batch_samples=sites * alone.batch_samples, budget_share=setting.budget_share)
    found = [name for name, other in settings.items() if other == wanted != setting]
    return found[0] if found else ""


def difference(losses: Mapping[int, float], others: Mapping[int, float]) -> tuple[float, float] | None:
    """Mean and standard deviation of loss - other over the seeds that both have (0 of one seed); None: no seed."""
    gaps = [losses[seed] - others[seed] for seed in sorted(set(losses) & set(others))]
    if not gaps:
        return None
    return statistics.fmean(gaps), statistics.stdev(gaps) if len(gaps) > 1 else 0.0


def table(lines: Iterable[Mapping[str, Any]], settings: Mapping[str, Setting]) -> str:
    """The results as a markdown table; differences are paired by seed, lines of unknown names are left out."""
    losses: dict[str, dict[int, float]] = {}
    last: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if line["name"] in settings:
            losses.setdefault(line["name"], {})[line["seed"]] = line["loss"]
            last[line["name"]] = line
    rows = [
        "| | loss, mean | SD | against one site | against one site with the batch of all | rounds | KB up | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, setting in settings.items():
        if name not in losses:
            continue
        mine = losses[name]
        spread = f"{statistics.stdev(mine.values()):.4f}" if len(mine) > 1 else "one seed"
        together = 0 if setting.script else setting.sites * setting.batch_samples // alone_in(settings).batch_samples
        others = [baseline_of(setting, sites, settings) for sites in (1, together if together > 1 else 0)]
        cells = [_signed(difference(mine, losses.get(other, {}))) for other in others]
        upload = f"{last[name]['upload_bytes'] / 1000:,.0f}" if last[name]["upload_bytes"] else ""
        mean = f"{statistics.fmean(mine.values()):.4f}"
        rows.append(
            f"| {name} | {mean} | {spread} | {' | '.join(cells)} | {last[name]['rounds']} | {upload} | {len(mine)} |"
        )
    return "\n".join(rows)


def _signed(found: tuple[float, float] | None) -> str:
    if found is None:
        return ""
    return f"{found[0]:+.4f} ± {found[1]:.4f}" if found[1] else f"{found[0]:+.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="make every run of all tables")
    what.add_argument("--only", action="append", choices=EVERY, metavar="NAME", help="make the runs of this name")
    what.add_argument("--rows-of", choices=TABLES, help="make every run of this table")
    what.add_argument("--table", type=Path, metavar="FILE", help="print the results in FILE as a table")
    parser.add_argument("--out", type=Path, help="where finished runs are, or will be, a line each")
    parser.add_argument("--data", type=Path, help="packed data; made where they are not; default: beside OUT")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args(argv)
    if given.table:
        if not (lines := read(given.table)):
            parser.error(f"there are no results in {given.table}")
        print(*(table(lines, settings) for settings, _ in TABLES.values()), sep="\n\n")
        return 0
    if given.out is None:
        parser.error("--out says where the results go")
    names = TABLES[given.rows_of][0] if given.rows_of else given.only or EVERY
    run_all(names, given.seeds, given.out, given.data or given.out.with_suffix(".data"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
