"""Options of `curtail tokenizer train|eval` and `curtail data import|fetch|prepare`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson
from curtail.commands.program import data_app, tokenizer_app


class Packing(StrEnum):
    """Ways to pack documents into samples."""

    STREAM = "stream"
    BEST_FIT = "bestfit"


class Dataset(StrEnum):
    """Published data sets that can be fetched."""

    FINEWEB_EDU = "fineweb-edu"
    CLIMBMIX = "climbmix"


@tokenizer_app.command("train")
def tokenizer_train(
    shards: Annotated[Path, typer.Argument(help="Folder made by `curtail data import` or `data fetch`.")],
    vocab_size: Annotated[int, typer.Option(help="Number of token ids, including special tokens.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json; created if missing.")],
) -> int:
    """Train a byte-pair encoding on imported text."""
    from curtail.commands.data.prepare import train_tokenizer

    return train_tokenizer(shards, vocab_size, out)


@tokenizer_app.command("eval")
def tokenizer_eval(
    tokenizer: Annotated[Path, typer.Argument(help="tokenizer.json, or the folder that holds it.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Additional text file to measure, UTF-8; repeatable.", show_default=False),
    ] = None,
    json: AsJson = False,
) -> int:
    """Measure bytes per token, in comparison with GPT-2 and cl100k.

    These two are omitted if tiktoken has no local copy of their files; nothing is downloaded.
    """
    from curtail.commands.data.prepare import evaluate_tokenizer

    return evaluate_tokenizer(tokenizer, text or [], json)


@data_app.command("import")
def data_import(
    paths: Annotated[list[Path], typer.Argument(help="Text files, folders, JSONL or parquet with a column `text`.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards; created if missing.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the data set in that folder.")] = False,
) -> int:
    """Import text into shards."""
    from curtail.commands.data.prepare import import_texts

    return import_texts(paths, out, overwrite)


@data_app.command("fetch")
def data_fetch(
    dataset: Annotated[Dataset, typer.Option(help="Published data set to download.")],
    shards: Annotated[
        int,
        typer.Option("--shards", "-n", min=1, help="Number of training shards; the validation shard is always added."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards; missing shards are added to an existing one.")],
    mirror: Annotated[
        str | None,
        typer.Option(help="Base URL of a mirror to use instead of the published source.", show_default=False),
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(help="Copy the shards from this folder instead of the network.", show_default=False),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Number of parallel downloads.")] = 4,
) -> int:
    """Download shards of a data set used by nanochat; existing shards are verified and kept."""
    from curtail.commands.data.fetch import FetchOptions, run

    return run(
        FetchOptions(
            dataset=dataset.value, shards=shards, out=out, mirror=mirror, offline=offline, parallel=parallel
        )
    )  # fmt: skip


@data_app.command("prepare")
def data_prepare(
    shards: Annotated[Path, typer.Argument(help="Folder made by `curtail data import` or `data fetch`.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json, or the folder that holds it.")],
    sequence_len: Annotated[int, typer.Option(min=1, help="Tokens per sample, as in the model's preset.")],
    out: Annotated[Path, typer.Option(help="Folder for the packed data; created if missing.")],
    packing: Annotated[
        Packing, typer.Option(help="stream: no gaps; bestfit: each row begins with BOS, and tails are cropped.")
    ] = Packing.STREAM,
) -> int:
    """Pack shards into token files with a manifest."""
    from curtail.commands.data.prepare import prepare

    return prepare(shards, tokenizer, sequence_len, out, packing.value)
