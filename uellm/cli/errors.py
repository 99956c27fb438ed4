"""Errors that people meet, in words instead of tracebacks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from rich.markup import escape

from uellm.cli.output import print_line, stderr
from uellm.rpc.errors import FieldViolation, InvalidArgumentError, UellmError

# Named and not imported: most commands start without the modules that define the others.
_EXPECTED_MODULES = (
    "uellm.bench.",
    "uellm.local.",
    "uellm.cli.errors",
    "uellm_profiler.learning.",
    "uellm_profiler.neural.errors",
    "uellm_profiler.app.ports",
    "uellm_scheduler.app.replay",
)


class MissingExtraError(Exception):
    """A command needs packages that are not installed."""


class InspectionError(Exception):
    """A model cannot be inspected."""


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import what needs an extra of the package. Raises MissingExtraError."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"there is no module {error.name}\ninstall what this command needs: pip install 'uellm[{extra}]'"
        raise MissingExtraError(message) from error


@contextlib.contextmanager
def naming(arguments: Mapping[str, str]) -> Iterator[None]:
    """Have violations of these fields of a request name what was given on the command line instead."""
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            [FieldViolation(_argument(one.field, arguments), one.description) for one in error.violations]
        ) from error


def _argument(field: str, arguments: Mapping[str, str]) -> str:
    for known, argument in arguments.items():
        if field == known or field.startswith(f"{known}."):
            return argument + field[len(known) :].replace(".", " ")
    return field


def expected(error: Exception) -> bool:
    """Whether its message says enough."""
    return isinstance(error, UellmError | OSError) or type(error).__module__.startswith(_EXPECTED_MODULES)


def say(error: Exception) -> None:
    """Print it on stderr."""
    first, _, rest = str(error).partition("\n")
    if isinstance(error, UellmError) and error.code == "UNAVAILABLE":
        first = f"a service does not answer: {first}. See `uellm status`"
    elif isinstance(error, UellmError) and error.code == "DEADLINE_EXCEEDED" and error.reason == error.code:
        first = "a service did not answer in time; what it began may go on. See `uellm status`"
    print_line(stderr, f"[bold red]error:[/] {escape(first)}")
    if rest:
        print_line(stderr, f"[dim]{escape(rest)}[/]")
