"""What is said about a query, sentence by sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from uellm_scheduler.app.explanation import Attempt, Others, Story, explain

from uellm.v1.query_pb2 import (
    QUERY_STATE_CANCELLED,
    QUERY_STATE_COMPLETED,
    QUERY_STATE_FAILED,
    QUERY_STATE_REJECTED,
    QUERY_STATE_WITHDRAWN,
    LengthDistribution,
    Outcome,
    ResourceProfile,
)

ACCEPTED = 1_767_348_000_123
PROFILE = ResourceProfile(prompt_tokens=34, output_length=LengthDistribution(p50_tokens=120, p90_tokens=210))
PROFILE.service_time_p50.FromMilliseconds(4_100)
FIRST = Attempt(ACCEPTED + 2_300, "tiny-17-5", 8, "deployments/a", "slo-odbs")
SECOND = Attempt(ACCEPTED + 9_000, "tiny-18-1", 1, "deployments/a", "edf")
WAITING = Story(
    accept_ms=ACCEPTED,
    now_ms=ACCEPTED + 3_000,
    profile=PROFILE,
    attempts=(),
    others=Others(2, 9, complete=True),
    deadline_seconds=20.0,
    outcome=None,
    waits_again=False,
    refusing_policy="",
)


def ended(state: int, seconds: float, tokens: int = 118, **fields: object) -> Outcome:
    outcome = Outcome(state=state, output_tokens=tokens, **fields)
    outcome.timing.finish_time.FromMilliseconds(ACCEPTED + round(1000 * seconds))
    return outcome


def test_a_waiting_query():
    assert explain(WAITING) == (
        "Accepted at 2026-01-02 10:00:00.123 UTC with a prompt of 34 tokens; the answer was predicted to take 120 "
        "tokens (median) or up to 210 (p90), 4.1 s if served alone. It has waited 3.0 s so far while 2 decisions "
        "dispatched 9 other queries. Its deadline is 20.0 s after acceptance: 17.0 s are left."
    )


def test_a_completed_query():
    story = replace(WAITING, attempts=(FIRST,), outcome=ended(QUERY_STATE_COMPLETED, 7, slo_met=True))
    assert explain(story).endswith(
        "It waited 2.3 s while 2 decisions dispatched 9 other queries; then the policy slo-odbs dispatched it with 7 "
        "others in batch tiny-17-5 on deployments/a. It completed 7.0 s after acceptance with 118 tokens; its deadline "
        "of 20.0 s was kept."
    )


def test_a_refused_query_with_its_numbers():
    outcome = ended(QUERY_STATE_REJECTED, 1.5, 0)
    detail = outcome.refusal.deadline_infeasible
    detail.predicted_finish_p50.FromMilliseconds(9_100)
    detail.predicted_finish_p90.FromMilliseconds(14_000)
    detail.deadline.FromMilliseconds(5_000)
    assert explain(replace(WAITING, outcome=outcome, refusing_policy="uellm")).endswith(
        "(p90), 4.1 s if served alone. The policy uellm refused it after 1.5 s while 2 decisions dispatched 9 other "
        "queries: even if served at once and alone it was predicted to finish 9.1 s (median length) or 14.0 s (p90) "
        "after acceptance, and its deadline was 5.0 s."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"deadline_seconds": None}, "It has no deadline."),
        ({"deadline_seconds": 2.0}, "Its deadline is 2.0 s after acceptance: it passed 1.0 s ago."),
        ({"others": Others(0, 0, complete=True)}, "It has waited 3.0 s so far while nothing else was dispatched."),
        ({"others": Others(0, 0, complete=False)}, "It has waited 3.0 s so far. Its"),
        ({"others": Others(1, 1, complete=False)}, "while at least 1 decision dispatched 1 other query."),
        ({"attempts": (FIRST,)}, "It has been running for 700 ms. Its deadline is"),
        ({"attempts": (FIRST,), "waits_again": True}, "It waits for another attempt. Its deadline is"),
        ({"attempts": (replace(FIRST, rows=1),)}, "dispatched it alone in batch tiny-17-5"),
        (
            {"attempts": (replace(FIRST, policy=""),)},
            "batch tiny-17-5 on deployments/a (that decision is not in the flight recorder any more).",
        ),
        (
            {"attempts": (FIRST, SECOND)},
            "twice, since earlier attempts did not end; the last time 9.0 s after acceptance in batch tiny-18-1 of 1",
        ),
        ({"attempts": (FIRST, SECOND, SECOND)}, "It was dispatched 3 times"),
    ],
)
def test_without_an_outcome(changes: dict[str, object], said: str):
    assert said in explain(replace(WAITING, **changes))


@pytest.mark.parametrize(
    ("outcome", "deadline", "said"),
    [
        (ended(QUERY_STATE_COMPLETED, 23), 20.0, "its deadline of 20.0 s was missed by 3.0 s."),
        (ended(QUERY_STATE_COMPLETED, 9), 20.0, "its deadline of 20.0 s was kept, that of its first token was not."),
        (ended(QUERY_STATE_COMPLETED, 9, slo_met=True), None, "118 tokens; no deadline was missed."),
        (ended(QUERY_STATE_COMPLETED, 9), None, "118 tokens; a deadline was missed."),
        (
            ended(QUERY_STATE_CANCELLED, 9, 1),
            5.0,
            "after acceptance with 1 token delivered. Its deadline",
        ),
        (ended(QUERY_STATE_CANCELLED, 9, 0), None, "It was cancelled 9.0 s after acceptance."),
        (ended(QUERY_STATE_WITHDRAWN, 61, 0), 5.0, "withdrawn 61.0 s after acceptance: its model had no deployment"),
        (ended(QUERY_STATE_FAILED, 4, 0, failure={"message": "lost"}), 5.0, "It failed 4.0 s after acceptance: lost."),
        (
            ended(QUERY_STATE_REJECTED, 4, 0, refusal={"message": "no room"}),
            5.0,
            "The scheduler refused it after 4.0 s: ",
        ),
    ],
)
def test_how_it_ended(outcome: Outcome, deadline: float | None, said: str):
    story = replace(WAITING, attempts=(FIRST,), outcome=outcome, deadline_seconds=deadline)
    assert said in explain(story)
