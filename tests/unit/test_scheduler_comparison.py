"""What another policy would have done at recorded decisions, by hand."""

from __future__ import annotations

from uellm_scheduler.app import events as on
from uellm_scheduler.app.comparison import Comparison, difference
from uellm_scheduler.app.limits import CoreLimits
from uellm_scheduler.app.replay import replay
from uellm_scheduler.policies import POLICIES

from tests.support.recording import Life
from tests.support.world import submission


def history(*queries: tuple[str, float], policy: str = "fifo") -> Life:
    """Batches of two on one engine: `first` runs while the others come, then each batch ends after a second."""
    life = Life([policy], 0, CoreLimits())
    for record in life.records:
        record.limits.max_batch_rows = 2
    life.records = life.records[:1]
    life.tell(on.DeploymentsChanged(life.records))
    for moment, (name, slo) in enumerate([("first", 0.0), *queries]):
        made = submission(name, slo_seconds=slo)
        taken = on.TakenQuery(made.name, f"{life.now_ms + moment}-0", made.entry)
        life.waiting[made.name] = taken
        life.now_ms += moment
        life.tell(on.QueriesTaken((taken,)))
    while life.running:
        life.now_ms += 1_000
        life.end()
    return life


def short(name: str) -> str:
    return name.rpartition("/")[2]


def test_earlier_later_and_alike():
    # FIFO: first | a b | c d. EDF: first | c a | at the second decision again c d waits only: c d.
    life = history(("a", 60), ("b", 0), ("c", 5), ("d", 90))
    assert [[short(n) for n in r.batches[0].names] for _, r in life.entries] == [["first"], ["a", "b"], ["c", "d"]]
    compared = Comparison.of(replay(life.entries, POLICIES, POLICIES["edf"]))
    assert (compared.decisions, compared.alike) == (3, 2)
    fates = compared.dispatched
    assert (fates.earlier, fates.same, fates.later, fates.refused, fates.total) == (1, 3, 1, 0, 5)
    [sooner] = compared.sooner
    assert (short(sooner.name), sooner.seconds, sooner.refused, sooner.has_deadline) == ("c", 1.0, False, True)
    assert (sooner.other_id, sooner.recorded_id) == (life.entries[1][0], life.entries[2][0])


def test_refused_instead_of_served_late_and_the_other_way_round():
    served = history(("hopeless", 0.001), ("b", 0))
    compared = Comparison.of(replay(served.entries, POLICIES, POLICIES["uellm"]))
    assert (compared.dispatched.refused, compared.dispatched.same) == (1, 2)
    refused = history(("hopeless", 0.001), ("b", 0), policy="uellm")
    compared = Comparison.of(replay(refused.entries, POLICIES, POLICIES["fifo"]))
    assert compared.refused.total == 1
    again = Comparison.of(replay(refused.entries, POLICIES, POLICIES["uellm"]))
    assert (again.alike, again.refused.refused) == (again.decisions, 1)


def test_the_difference_is_told():
    life = history(("a", 60), ("b", 0), ("c", 5))
    for _, record in life.entries:
        record.policy = "edf"
    told = [difference(one) for one in replay(life.entries, POLICIES)]
    assert told[0] == ""
    assert told[1].startswith("recorded deployments/a: tenants/t/models/tiny/queries/a, ")
    assert "again deployments/a: tenants/t/models/tiny/queries/c, " in told[1]
    refused = history(("hopeless", 0.001), ("b", 0), policy="uellm")
    [record] = [record for _, record in refused.entries if record.refusals]
    record.refusals[0].refusal.deadline_infeasible.predicted_finish_p90.FromMilliseconds(1)
    [told] = [told for one in replay(refused.entries, POLICIES) if (told := difference(one))]
    assert "hopeless refused" in told
