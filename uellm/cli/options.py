"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

State = Annotated[
    Path, typer.Option("--state", help="Folder of the stack: data, repository, logs.", envvar="UELLM_STATE")
]
Model = Annotated[str, typer.Option("--model", help="Logical model; default: the stack's.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Tenant; default: local.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
