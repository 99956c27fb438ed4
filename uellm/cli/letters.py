"""`uellm dead-letters`: queries that failed for good."""

from __future__ import annotations

from typing import Annotated

import typer

from uellm.cli.options import Json, Model, State
from uellm.local.state import default_folder

letters = typer.Typer(help="Queries that failed for good.", no_args_is_help=True)


@letters.command("list")
def list_letters(model: Model = "", state: State = default_folder(), as_json: Json = False) -> None:
    """List them, oldest first, with what went wrong. Prompts are shown by --json only."""
    from uellm.cli.queries import show_letters

    show_letters(state, model, as_json=as_json)


@letters.command()
def replay(
    name: Annotated[str, typer.Argument(help="Resource name of the query that failed.")],
    state: State = default_folder(),
) -> None:
    """Submit one again, under a new id and with its deadline counted anew."""
    from uellm.cli.queries import replay as command

    command(state, name)
