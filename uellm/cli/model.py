"""`uellm model`: the commands and their options. What they do is imported when one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uellm.cli.options import Json

model = typer.Typer(help="Models before they are deployed.", no_args_is_help=True)


@model.command()
def inspect(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of the model: config.json, weights or not.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", dir_okay=False, help="Write the facts there; default: facts.json in the folder."),
    ] = None,
    context_limit: Annotated[
        int | None, typer.Option(min=2, help="Longest context, in tokens, where the config names none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find out what a model takes and computes, layer by layer: for families that the deployer doesn't know by itself.

    Builds it with transformers without memory (torch's meta device); weights aren't read, code of the folder isn't run.
    """
    from uellm.cli.errors import naming, needing

    with needing("backend"):
        from uellm.cli import model_inspection as command

    with naming({"spec.weights_path": "FOLDER"}):
        command.inspect(folder, out, context_limit, as_json=as_json)
