"""The abstract's claims: as they come about, and what is left of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.paper.published import BASELINES, Runs, by_index, means, percent, reduction
from benchmarks.paper.section import Section
from benchmarks.paper.systems import MORPHLING, S3_SYSTEM, UELLM_ALL, UELLM_DEPLOY


def claims_section(published: Sequence[Runs], equal: Sequence[Runs], fair: Mapping[str, str]) -> Section:
    """Every claim of the abstract.

    Args:
        published: experiments as published.
        equal: the last rung of the ladder: one GPU, nothing cut, the same answers.
        fair: what SLO-ODBS has against fifo where rows leave as they end, as `closed_section` tells.
    """
    rows = (
        (
            "latency -72.3 % to -90.3 %",
            "-72.4 % (Morphling) and -90.3 % (S3) in the fifth run of each; on means -80.8 % and -87.8 %",
            (
                f"{_reductions(published, MORPHLING.name)} (Morphling), {_reductions(published, S3_SYSTEM.name)} (S3) "
                "by "
                f"pairs of runs; on means {_mean(published, MORPHLING.name)} and {_mean(published, S3_SYSTEM.name)}"
            ),
            (
                f"{percent(reduction(equal, UELLM_DEPLOY.name))} to fifo, {percent(reduction(equal, S3_SYSTEM.name))} "
                "to S3; "
                f"where rows leave as they end {fair['latency']} to fifo"
            ),
            (
                f"UELLM-all cuts {_share(published, 'cut')} of its answers at its guess + 50; the others run on two "
                "or four "
                "GPUs in turn, serve a stress test first, or share their GPUs with a stranger"
            ),
        ),
        (
            "GPU utilisation x1.2 to x4.1",
            (
                "83.8 % of one GPU to 21.4 % (UELLM-batch) and 32.6 % (Morphling) of those in use; 17.4 % to 18.3 % of "
                "four"
            ),
            f"{_busy(published, 'busy')} of the GPUs in use; {_busy(published, 'busy_of_four')} of four",
            f"no difference while a queue lasts ({fair['busy']} to fifo)",
            "one GPU instead of four that take turns; whoever fills batches keeps a GPU busy",
        ),
        (
            "throughput x1.92 to x4.98",
            "x1.92 in the third run (Morphling), x4.98 in the fifth (S3); on means x2.47 and x3.67",
            (
                f"{_ratios(published, MORPHLING.name)} (Morphling), {_ratios(published, S3_SYSTEM.name)} (S3) by "
                "pairs of "
                f"runs; useful tokens on means x{_useful(published, MORPHLING.name)} and "
                f"x{_useful(published, S3_SYSTEM.name)}"
            ),
            (
                f"useful tokens x{_useful(equal, UELLM_DEPLOY.name)} to fifo, x{_useful(equal, S3_SYSTEM.name)} to "
                "S3; where "
                f"rows leave as they end {fair['throughput']} to fifo"
            ),
            "padding counts as throughput there, and cut answers as whole ones",
        ),
        (
            "no SLO violation",
            "none in five runs; the tightest objective is 90 s, the run takes 62 to 72 s",
            f"{_share(published, 'missed')} missed; UELLM-deploy {_missed(published, UELLM_DEPLOY.name)}",
            (
                f"{_share(equal, 'missed')} missed, fifo {_missed(equal, UELLM_DEPLOY.name)}; where rows leave as "
                "they end "
                f"{fair['missed']}; objectives half as long {fair['missed twice as tight']}"
            ),
            (
                "cut answers end before the first objective is due; whole ones do not. Objectives fall with the "
                "position in "
                "the file, so that first come, first served meets the tightest last"
            ),
        ),
    )
    notes = (
        (
            "UELLM-all against the others. Published: recomputed from the logs. As published, replica: the same "
            "conditions. "
            "Fair: one GPU each, nothing cut, the same answers for each system; useful tokens; 95 % intervals."
        ),
    )
    header = ("claimed", "in the published logs", "as published, replica", "fair", "why")
    return Section("The abstract's claims", notes, header, rows)


def _reductions(experiments: Sequence[Runs], other: str) -> str:
    least, most = by_index(experiments, other, "makespan")
    return f"{100 * (most - 1):+.1f} % to {100 * (least - 1):+.1f} %"


def _mean(experiments: Sequence[Runs], other: str) -> str:
    return f"{100 * reduction(experiments, other).mean:+.1f} %"


def _ratios(experiments: Sequence[Runs], other: str) -> str:
    least, most = by_index(experiments, other, "padded_tokens")
    return f"x{least:.2f} to x{most:.2f}"


def _useful(experiments: Sequence[Runs], other: str) -> str:
    ours, theirs = (fmean(means(experiments, name, "useful_tokens")) for name in (UELLM_ALL.name, other))
    return f"{ours / theirs:.2f}"


def _busy(experiments: Sequence[Runs], figure: str) -> str:
    ours = fmean(means(experiments, UELLM_ALL.name, figure))
    ratios = [ours / fmean(means(experiments, other.name, figure)) for other in BASELINES]
    return f"x{min(ratios):.2f} to x{max(ratios):.2f}"


def _share(experiments: Sequence[Runs], figure: str) -> str:
    return f"{100 * fmean(means(experiments, UELLM_ALL.name, figure)):.1f} %"


def _missed(experiments: Sequence[Runs], other: str) -> str:
    return f"{100 * fmean(means(experiments, other, 'missed')):.1f} %"
