"""Why a query was served when it was, or refused: in words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration

from uellm.v1.query_pb2 import (
    QUERY_STATE_CANCELLED,
    QUERY_STATE_COMPLETED,
    QUERY_STATE_FAILED,
    QUERY_STATE_REJECTED,
    Outcome,
    ResourceProfile,
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One dispatch."""

    time_ms: int
    batch_id: str
    rows: int
    deployment: str
    policy: str
    """Empty: the decision is not kept any more."""


@dataclass(frozen=True, slots=True)
class Others:
    """Decisions that dispatched others while the query waited for its first dispatch."""

    decisions: int
    queries: int
    complete: bool
    """Whether these are all."""


@dataclass(frozen=True, slots=True)
class Story:
    """All that is known of a query. Times are by the queue's clock."""

    accept_ms: int
    now_ms: int
    profile: ResourceProfile
    attempts: tuple[Attempt, ...]
    others: Others
    deadline_seconds: float | None
    """For the whole answer, from acceptance; None: it has none, or that is not known any more."""
    outcome: Outcome | None
    waits_again: bool
    """Whether it waits for another attempt."""
    refusing_policy: str
    """Empty: none refused it, or the decision is not kept any more."""


def explain(story: Story) -> str:
    """A short paragraph."""
    sentences = [_accepted(story), _waited(story), _retries(story)]
    sentences.append(_ended(story, story.outcome) if story.outcome is not None else _stands(story))
    return " ".join(sentence for sentence in sentences if sentence)


def _accepted(story: Story) -> str:
    moment = datetime.fromtimestamp(story.accept_ms / 1000, UTC)
    length, alone = story.profile.output_length, _seconds_of(story.profile.service_time_p50)
    served = f", {_seconds(alone)} if served alone" if alone else ""
    return (
        f"Accepted at {moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03} UTC with a prompt of "
        f"{_count(story.profile.prompt_tokens, 'token')}; the answer was predicted to take {length.p50_tokens:.0f} "
        f"tokens (median) or up to {length.p90_tokens:.0f} (p90){served}."
    )


def _waited(story: Story) -> str:
    """How long it waited for its first dispatch, and who went before it."""
    if not story.attempts:
        if story.outcome is not None:
            return ""
        return f"It has waited {_since(story, story.now_ms)} so far{_meanwhile(story.others)}."
    first = story.attempts[0]
    rows = "alone" if first.rows == 1 else f"with {_count(first.rows - 1, 'other')}"
    who = f"the policy {first.policy} dispatched it" if first.policy else "it was dispatched"
    gone = "" if first.policy else " (that decision is not in the flight recorder any more)"
    return (
        f"It waited {_since(story, first.time_ms)}{_meanwhile(story.others)}; then {who} {rows} in batch "
        f"{first.batch_id} on {first.deployment}{gone}."
    )


def _meanwhile(others: Others) -> str:
    if not others.decisions:
        return " while nothing else was dispatched" if others.complete else ""
    least = "" if others.complete else "at least "
    return f" while {least}{_count(others.decisions, 'decision')} dispatched {_count(others.queries, 'other query')}"


def _retries(story: Story) -> str:
    if len(story.attempts) < 2:
        return ""
    last = story.attempts[-1]
    times = "twice" if len(story.attempts) == 2 else f"{len(story.attempts)} times"
    return (
        f"It was dispatched {times}, since earlier attempts did not end; the last time {_since(story, last.time_ms)} "
        f"after acceptance in batch {last.batch_id} of {_count(last.rows, 'row')} on {last.deployment}."
    )


def _stands(story: Story) -> str:
    """Where a query without an outcome stands."""
    left = "It has no deadline."
    if story.deadline_seconds is not None:
        seconds = story.deadline_seconds - (story.now_ms - story.accept_ms) / 1000
        told = f"{_seconds(seconds)} are left" if seconds >= 0 else f"it passed {_seconds(-seconds)} ago"
        left = f"Its deadline is {_seconds(story.deadline_seconds)} after acceptance: {told}."
    if not story.attempts:
        return left
    if story.waits_again:
        return f"It waits for another attempt. {left}"
    return f"It has been running for {_seconds((story.now_ms - story.attempts[-1].time_ms) / 1000)}. {left}"


def _ended(story: Story, outcome: Outcome) -> str:
    after = _since(story, outcome.timing.finish_time.ToMilliseconds())
    if outcome.state == QUERY_STATE_COMPLETED:
        tokens = _count(outcome.output_tokens, "token")
        return f"It completed {after} after acceptance with {tokens}; {_kept(story, outcome)}."
    if outcome.state == QUERY_STATE_REJECTED:
        return _refused(story, outcome, after)
    delivered = f" with {_count(outcome.output_tokens, 'token')} delivered" if outcome.output_tokens else ""
    if outcome.state == QUERY_STATE_FAILED:
        return f"It failed {after} after acceptance{delivered}: {outcome.failure.message}."
    if outcome.state == QUERY_STATE_CANCELLED:
        return f"It was cancelled {after} after acceptance{delivered}.{_deadline(story)}"
    return f"It was withdrawn {after} after acceptance{delivered}: its model had no deployment any more."


def _refused(story: Story, outcome: Outcome, after: str) -> str:
    who = f"The policy {story.refusing_policy}" if story.refusing_policy else "The scheduler"
    meanwhile = "" if story.attempts else _meanwhile(story.others)
    said = f"{who} refused it after {after}{meanwhile}"
    if not outcome.refusal.HasField("deadline_infeasible"):
        return f"{said}: {outcome.refusal.message}."
    detail = outcome.refusal.deadline_infeasible
    p50, p90, deadline = (
        _seconds(_seconds_of(value))
        for value in (detail.predicted_finish_p50, detail.predicted_finish_p90, detail.deadline)
    )
    return (
        f"{said}: even if served at once and alone it was predicted to finish {p50} (median length) or {p90} (p90) "
        f"after acceptance, and its deadline was {deadline}."
    )


def _kept(story: Story, outcome: Outcome) -> str:
    if story.deadline_seconds is None:
        return "no deadline was missed" if outcome.slo_met else "a deadline was missed"
    seconds = (outcome.timing.finish_time.ToMilliseconds() - story.accept_ms) / 1000 - story.deadline_seconds
    told = _seconds(story.deadline_seconds)
    if seconds > 0:
        return f"its deadline of {told} was missed by {_seconds(seconds)}"
    return f"its deadline of {told} was kept" + ("" if outcome.slo_met else ", that of its first token was not")


def _deadline(story: Story) -> str:
    return "" if story.deadline_seconds is None else f" Its deadline was {_seconds(story.deadline_seconds)}."


def _since(story: Story, time_ms: int) -> str:
    return _seconds(max(0, time_ms - story.accept_ms) / 1000)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _seconds_of(duration: Duration) -> float:
    return float(duration.ToMilliseconds()) / 1000


def _count(number: int, thing: str) -> str:
    plural = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"
