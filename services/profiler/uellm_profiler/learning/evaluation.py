"""What is evaluated: the test prompts that are committed, and, apart, prompts of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uellm_profiler.learning import DATA
from uellm_profiler.learning.dataset import LabelledPrompt, label_prompts, select
from uellm_profiler.learning.examples import Example
from uellm_profiler.learning.labels import Label, read_labels
from uellm_profiler.learning.prompts import DataError, Prompt, read_prompts
from uellm_profiler.learning.report.baselines import fit_baselines, prior_entrant
from uellm_profiler.learning.report.command import Reproduced, enter, publish, reproduce
from uellm_profiler.learning.report.entrants import Entrant
from uellm_profiler.learning.report.settings import Card, Collection, Settings
from uellm_profiler.neural.predictor import NeuralPredictor

PUBLIC = ("mt_bench", "vicuna", "arena_hard_v0.1")
"""Prompt sets of others, LMSYS (MT-Bench, Vicuna) and LMArena (Arena-Hard-Auto): their texts are not here."""
CARD = Path(__file__).with_name("card")
"""Folder of the committed card and the predictions under it."""
OTHERS = "public benchmark prompts"
SERVED_MODEL = "SmolLM2-135M-Instruct, float32, with its own chat template and tokenizer"
SPLIT = (
    "by a hash of each prompt's source and id; prompts of which 60 % of the runs of three words are those of a prompt "
    "before them (Jaccard) are left out"
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Test examples and what was learned from."""

    test: Sequence[Example]
    others: Sequence[Example]
    """Texts are empty where they were not given."""
    train: Sequence[Label]
    labels: Sequence[Label]
    """All of them: samples of the same prompt make the noise floor."""
    train_examples: Sequence[Example]
    """Those with texts."""
    has_texts: bool
    """Whether the texts of the others' prompts were given."""

    def settings(self, others: Sequence[Entrant]) -> Settings:
        """How the card is made, given who entered for the prompts of others."""
        return Settings(
            served_model=SERVED_MODEL,
            split=SPLIT,
            collections=[Collection(OTHERS, self.others, others)],
            floor_labels=self.labels,
        )


def read_training(public: Path | None) -> list[LabelledPrompt]:
    """All labelled prompts; those of others only if the folder with their `prompts_*.jsonl` is given."""
    prompts = _committed_prompts()
    if public is not None:
        prompts += [prompt for name in PUBLIC for prompt in read_prompts(public / f"prompts_{name}.jsonl", name)]
    return label_prompts(prompts, _labels())


def read_evaluation(public: Path | None) -> Evaluation:
    """Read what is committed, and the others' prompts if their folder is given. Raises DataError."""
    labelled = read_training(public)
    labels = _labels()
    if public is None:
        labelled += _without_texts([label for label in labels if label.source in PUBLIC])
    test = select(labelled, "test")
    learned = [*select(labelled, "train"), *select(labelled, "validation")]
    if not test or not learned:
        raise DataError(f"{DATA} lacks prompts or labels: install the package again")
    # In the same order with texts and without: intervals depend on it.
    rows = sorted((example for one in test for example in one.examples), key=lambda example: example.label.key)
    return Evaluation(
        test=[row for row in rows if row.prompt.source not in PUBLIC],
        others=[row for row in rows if row.prompt.source in PUBLIC],
        train=[label for one in learned for label in one.labels],
        labels=labels,
        train_examples=[example for one in learned if one.prompt.text for example in one.examples],
        has_texts=public is not None,
    )


def make_card(
    evaluation: Evaluation,
    folder: Path,
    predictors: Sequence[tuple[str, NeuralPredictor]],
    progress: Callable[[str, int, int], None],
) -> Card:
    """Train the baselines, run all predictors, and write card and predictions into `folder`.

    Raises DataError without the texts of the others' prompts: what was trained on them must not be compared with
    baselines that were not.
    """
    if not evaluation.has_texts:
        raise DataError("the texts of all prompts are needed to make a new card: name their folder with --public")
    baselines = fit_baselines(evaluation.train_examples, progress)

    def enter_all(rows: Sequence[Example]) -> list[Entrant]:
        live = [_enter(one, rows, progress) for one in predictors]
        return [*live, *(baseline.enter(rows) for baseline in baselines), prior_entrant(rows)]

    entrants, apart = enter_all(evaluation.test), enter_all(evaluation.others)
    return publish(folder, evaluation.test, evaluation.train, entrants, evaluation.settings(apart))


def check_card(
    evaluation: Evaluation,
    folder: Path,
    predictors: Sequence[tuple[str, NeuralPredictor]],
    progress: Callable[[str, int, int], None],
) -> Reproduced:
    """Run the predictors again and compare with the committed card; what needs texts that are absent is taken from it.

    Raises DisagreementError for a predictor that predicts something else, ValueError for damaged files.
    """
    live = [_enter(one, evaluation.test, progress) for one in predictors]
    apart = [_enter(one, evaluation.others, progress) for one in predictors] if evaluation.has_texts else []
    return reproduce(folder, evaluation.test, evaluation.train, live, evaluation.settings(apart))


def _enter(
    predictor: tuple[str, NeuralPredictor], rows: Sequence[Example], progress: Callable[[str, int, int], None]
) -> Entrant:
    name, model = predictor
    return enter(
        name,
        model,
        rows,
        parameters=model.parameters,
        trained_parameters=model.trained_parameters,
        progress=lambda done, total: progress(name, done, total),
    )


def _committed_prompts() -> list[Prompt]:
    """Our own first: of near-duplicates the first one stays."""
    files = sorted(DATA.glob("prompts_*.jsonl"), key=lambda file: (file.stem != "prompts_own", file.stem))
    return [prompt for file in files for prompt in read_prompts(file)]


def _labels() -> list[Label]:
    return [label for file in sorted(DATA.glob("lengths_*.jsonl")) for label in read_labels(file)]


def _without_texts(labels: Sequence[Label]) -> list[LabelledPrompt]:
    """Prompts known by their labels only. Nothing compares them: near-duplicates have no labels here."""
    by_prompt: dict[tuple[str, str], LabelledPrompt] = {}
    for label in sorted(labels, key=lambda one: one.key):
        known = by_prompt.get(label.prompt) or LabelledPrompt(Prompt(*label.prompt, "public", ""), ())
        by_prompt[label.prompt] = replace(known, labels=(*known.labels, label))
    return list(by_prompt.values())
