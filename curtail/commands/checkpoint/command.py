"""Options of `curtail checkpoint import` and `curtail checkpoint export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.program import checkpoint_app


class Form(StrEnum):
    """Formats to which a checkpoint can be exported."""

    NANOCHAT = "nanochat"
    SAFETENSORS = "safetensors"


@checkpoint_app.command("import")
def checkpoint_import(
    path: Annotated[Path, typer.Argument(help="nanochat's checkpoint folder, or one model_NNNNNN.pt in it.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; created if missing.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The model's tokenizer.json, or its folder; copied into --out.", show_default=False),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(min=0, help="Step of the checkpoint in the folder; default: the last.", show_default=False),
    ] = None,
    rope_base: Annotated[
        float | None, typer.Option(help="Base of the rotary embeddings; default: inferred.", show_default=False)
    ] = None,
    qk_scale: Annotated[
        float | None, typer.Option(help="Factor on queries and keys; default: inferred.", show_default=False)
    ] = None,
    softcap: Annotated[
        float | None, typer.Option(help="Softcap of the logits; default: inferred.", show_default=False)
    ] = None,
    short_window: Annotated[
        int | None,
        typer.Option(min=0, help="Attention window of S layers in tokens; default: inferred.", show_default=False),
    ] = None,
) -> int:
    """Convert a nanochat checkpoint to a curtail checkpoint.

    nanochat's files do not record some constants of the model. They are inferred from the
    weights and printed; the last four options override them.
    """
    from curtail.commands.checkpoint.convert import import_checkpoint
    from nanochat.upstream_checkpoint import Given

    return import_checkpoint(path, out, tokenizer, step, Given(rope_base, qk_scale, softcap, short_window))


@checkpoint_app.command("export")
def checkpoint_export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint, such as HOME/versions/v000012.")],
    form: Annotated[
        Form, typer.Option("--format", help="nanochat: .pt and meta JSON; safetensors: one file with metadata.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the files; created if missing.")],
) -> int:
    """Export a checkpoint to the format of nanochat or to safetensors."""
    from curtail.commands.checkpoint.convert import export_checkpoint

    return export_checkpoint(checkpoint, form.value, out)
