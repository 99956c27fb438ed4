"""`uellm generate`, `uellm profile`, `uellm cancel` and `uellm explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.table import Table

from uellm.cli.connect import find
from uellm.cli.interrupts import Interrupts
from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.values import seconds_between, seconds_of, show_bytes, show_seconds
from uellm.client import Client, Outcome, QueryOptions, ResourceProfile, Restarted, Submitted, Transcript
from uellm.v1.query_pb2 import FINISH_REASON_LENGTH, QUERY_STATE_COMPLETED, QueryState

INTERRUPTED = 130


def options(
    model: str,
    slo: float | None = None,
    first_token_slo: float | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
) -> QueryOptions:
    """What was given on the command line."""
    given = {
        "model": model or None,
        "slo_seconds": slo,
        "first_token_slo_seconds": first_token_slo,
        "max_output_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    return cast("QueryOptions", {name: value for name, value in given.items() if value is not None})


def generate(state: Path, prompt: str, wanted: QueryOptions, *, as_json: bool) -> int:
    """Stream an answer; returns the exit status. Ctrl-C cancels the query."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        query = client.submit(prompt, **wanted)
        try:
            with Interrupts() as interrupts:
                outcome = _follow(client, query, interrupts, quiet=as_json)
        except KeyboardInterrupt:
            client.cancel(query)
            print_line(stderr, f"\ncancelled {query.name}")
            return INTERRUPTED
    deadline = wanted.get("slo_seconds")
    if as_json:
        fields = MessageToDict(outcome, preserving_proto_field_name=True)
        sys.stdout.write(json.dumps({"name": query.name, **fields}, indent=2, ensure_ascii=False) + "\n")
    else:
        print_line(stderr, summary(outcome, deadline))
    return 0 if outcome.state == QUERY_STATE_COMPLETED else 1


def profile(state: Path, prompt: str, wanted: QueryOptions, *, as_json: bool) -> None:
    """Show a prediction."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        predicted = client.profile(prompt, **wanted)
    if as_json:
        fields = MessageToDict(predicted, preserving_proto_field_name=True)
        sys.stdout.write(json.dumps(fields, indent=2) + "\n")
    else:
        stdout.print(_profile_table(predicted))


def cancel(state: Path, name: str) -> None:
    """End a query."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        stdout.print(f"it was {state_name(client.cancel(name))}")


def explain(state: Path, name: str, *, as_json: bool) -> None:
    """Say why a query was served when it was, or refused."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        response = client.explain(name)
    if as_json:
        fields = MessageToDict(response, preserving_proto_field_name=True)
        sys.stdout.write(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    else:
        print_line(stdout, escape(response.explanation))


def state_name(state: QueryState) -> str:
    """`completed`, `running`, ..."""
    name: str = QueryState.Name(state)
    return name.removeprefix("QUERY_STATE_").lower()


def summary(outcome: Outcome, deadline: float | None) -> str:
    """One line: how it ended, predicted against actual, and whether the deadline was kept. Rich markup."""
    length, timing = outcome.profile.output_length, outcome.timing
    cut = ", cut at the limit" if outcome.finish_reason == FINISH_REASON_LENGTH else ""
    parts = [
        f"[bold]{state_name(outcome.state)}[/]{_reason(outcome)}",
        f"{outcome.output_tokens} tokens{cut} (predicted {length.p50_tokens:.0f}, p90 {length.p90_tokens:.0f})",
        f"waited {show_seconds(seconds_between(timing.accept_time, timing.dispatch_time))}",
        f"served in {show_seconds(seconds_between(timing.dispatch_time, timing.finish_time))}",
    ]
    if deadline is not None:
        took = seconds_between(timing.accept_time, timing.finish_time)
        late = f"[red]missed by {show_seconds(took - deadline)}[/]"
        kept = "[green]kept[/]" if took <= deadline else late
        parts.append(f"deadline {show_seconds(deadline)} {kept}")
    return "[dim] · [/]".join(parts)


def _reason(outcome: Outcome) -> str:
    message = outcome.refusal.message or outcome.failure.message
    return f" ({escape(message)})" if message else ""


def _follow(client: Client, query: Submitted, interrupts: Interrupts, *, quiet: bool) -> Outcome:
    """Print the deltas as they come; returns the outcome."""
    transcript = Transcript()
    for event in client.stream(query):
        interrupts.check()
        if isinstance(event, Outcome):
            break
        added = transcript.add(event)
        if quiet:
            continue
        if isinstance(event, Restarted):
            stderr.print("\n[yellow]the answer begins anew[/]")
        sys.stdout.write(_printable(added) if sys.stdout.isatty() else added)
        sys.stdout.flush()
    assert isinstance(event, Outcome)
    if not quiet:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return event


def _printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _profile_table(profile: ResourceProfile) -> Table:
    length = profile.output_length
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_row("prompt", f"{profile.prompt_tokens} tokens")
    table.add_row(
        "answer",
        f"{length.p50_tokens:.0f} tokens (median), {length.p90_tokens:.0f} (p90), {length.p99_tokens:.0f} (p99)",
    )
    table.add_row("limit", f"{length.limit_tokens} tokens, reached with {length.limit_probability:.0%}")
    table.add_row(
        "KV cache",
        f"{show_bytes(profile.kv_cache_bytes_p90)} (p90), {show_bytes(profile.kv_cache_bytes_limit)} at the limit",
    )
    table.add_row("first token", f"after {show_seconds(seconds_of(profile.first_token_time))}, served alone")
    table.add_row(
        "service time",
        f"{show_seconds(seconds_of(profile.service_time_p50))} (median), "
        f"{show_seconds(seconds_of(profile.service_time_p90))} (p90), served alone",
    )
    table.add_row("predictor", f"{profile.predictor_version}, cost model {profile.cost_model_version or 'none'}")
    return table
