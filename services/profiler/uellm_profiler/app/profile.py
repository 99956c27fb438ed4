"""Profile queries: no side effect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from uellm.cost.lengths import LengthDistribution
from uellm.cost.model import CostModel
from uellm.rpc.errors import RefusedError
from uellm.rpc.validation import Violations
from uellm.v1.query_pb2 import REFUSAL_REASON_PREDICTOR_OVERLOADED, Query, ResourceProfile
from uellm.v1.stream_pb2 import DeploymentRecord
from uellm_profiler.app.ports import Deployments, EncodedPrompt, PromptError, Tokenizer
from uellm_profiler.domain import limits, refusals
from uellm_profiler.domain.predictor import LengthPredictor, Prediction, PredictorInput, Urgency
from uellm_profiler.domain.profile import resource_profile
from uellm_profiler.domain.recalibration import Calibration


@dataclass(frozen=True, slots=True)
class ProfiledPrompt:
    """A query that was profiled."""

    query: Query
    """With every default filled in."""
    prompt: EncodedPrompt
    profile: ResourceProfile
    cost: CostModel
    """Of the deployment that it was profiled for."""


def random_seed() -> int:
    """A seed for a query that came without one."""
    return _random.randrange(limits.SEED_LIMIT)


def prior_cost(deployment: DeploymentRecord) -> CostModel:
    """What is known of a deployment's cost before anything was measured."""
    return CostModel.from_prior(deployment.step_time_prior)


def uncalibrated(model: str, predictor_version: str) -> None:
    """No calibration, whatever the model and the predictor."""


_random = random.Random()  # noqa: S311  (no secret, and the system's take a system call each)
_TURN = 8


@dataclass(frozen=True, slots=True)
class Profiler:
    """Profiles valid queries for one model."""

    deployments: Deployments
    tokenizer: Tokenizer
    predictor: LengthPredictor
    prior: LengthPredictor
    """Answers where the predictor is overloaded and the caller allows it."""
    new_seed: Callable[[], int] = random_seed
    cost_of: Callable[[DeploymentRecord], CostModel] = prior_cost
    """What is known of a deployment's cost; never waits."""
    calibration_of: Callable[[str, str], Calibration | None] = uncalibrated
    """What corrects predictions for a model by a predictor version, if anything is known yet; never waits."""

    async def profile(
        self,
        model: str,
        queries: Sequence[Query],
        paths: Sequence[str],
        *,
        urgency: Urgency = Urgency.INTERACTIVE,
        allow_prior: bool = False,
    ) -> list[ProfiledPrompt]:
        """Profile queries that passed `check_query`; `paths` are theirs in the request.

        Raises:
            RefusedError: MODEL_NOT_DEPLOYED, PROMPT_TOO_LONG for the first query of which it is true, or
                PREDICTOR_OVERLOADED unless `allow_prior`.
            InvalidArgumentError: a query asks for what its model does not have.
            UnavailableError: the model's tokenizer can't be read.
        """
        deployment = limits.choose_deployment(self.deployments.ready(model))
        if deployment is None:
            raise refusals.model_not_deployed(model, self.deployments.of_model(model))
        _check_against(deployment, queries, paths)
        prompts = await self._encode(deployment, queries, paths)
        filled = [
            self._fill(deployment, query, prompt, path)
            for query, prompt, path in zip(queries, prompts, paths, strict=True)
        ]
        prediction = await self._predict(_inputs(model, filled, prompts), urgency, allow_prior=allow_prior)
        cost = self.cost_of(deployment)
        calibration = self.calibration_of(model, prediction.version)
        profiled: list[ProfiledPrompt] = []
        for turn in _turns(len(filled)):
            profiled += [
                _profiled(
                    deployment,
                    cost,
                    filled[index],
                    prompts[index],
                    prediction.version,
                    prediction.lengths[index],
                    calibration,
                )
                for index in turn
            ]
            await asyncio.sleep(0)
        return profiled

    async def _encode(
        self, deployment: DeploymentRecord, queries: Sequence[Query], paths: Sequence[str]
    ) -> list[EncodedPrompt]:
        encoded: list[EncodedPrompt | BaseException] = []
        for turn in _turns(len(queries)):
            encoding = (self.tokenizer.encode(deployment.tokenizer_path, queries[index]) for index in turn)
            encoded += await asyncio.gather(*encoding, return_exceptions=True)
        violations = Violations()
        prompts: list[EncodedPrompt] = []
        for path, result in zip(paths, encoded, strict=True):
            if isinstance(result, PromptError):
                violations.add(f"{path}.{result.field}", result.description)
            elif isinstance(result, BaseException):
                raise result
            else:
                prompts.append(result)
        violations.raise_if_any()
        return prompts

    def _fill(self, deployment: DeploymentRecord, query: Query, prompt: EncodedPrompt, path: str) -> Query:
        tokens = len(prompt.token_ids)
        limit = limits.output_limit(query.generation, deployment, tokens)
        if limit < 1:
            raise refusals.prompt_too_long(tokens, limits.context_tokens(deployment), path)
        return limits.fill_defaults(query, deployment, limit, self.new_seed)

    async def _predict(self, inputs: Sequence[PredictorInput], urgency: Urgency, *, allow_prior: bool) -> Prediction:
        try:
            return await self.predictor.predict(inputs, urgency)
        except RefusedError as error:
            if not allow_prior or error.refusal.reason != REFUSAL_REASON_PREDICTOR_OVERLOADED:
                raise
        return await self.prior.predict(inputs, urgency)


def _turns(count: int) -> Iterator[range]:
    """Indices in groups, between which other calls get their turn on the event loop and in the tokenizer's threads."""
    for begin in range(0, count, _TURN):
        yield range(begin, min(begin + _TURN, count))


def _profiled(
    deployment: DeploymentRecord,
    cost: CostModel,
    query: Query,
    prompt: EncodedPrompt,
    version: str,
    length: LengthDistribution,
    calibration: Calibration | None,
) -> ProfiledPrompt:
    raw = length.truncate(query.generation.max_output_tokens)
    profile = resource_profile(
        deployment,
        len(prompt.token_ids),
        raw if calibration is None else calibration.calibrate(raw),
        cost,
        priority=query.priority,
        predictor_version=version,
    )
    if calibration is not None:
        profile.calibration_version = calibration.version
        profile.uncalibrated_probabilities.extend((*raw.probabilities, raw.limit_probability))
    return ProfiledPrompt(query, prompt, profile, cost)


def _inputs(model: str, queries: Sequence[Query], prompts: Sequence[EncodedPrompt]) -> list[PredictorInput]:
    return [
        PredictorInput(
            model=model,
            content=prompt.content,
            prompt_tokens=len(prompt.token_ids),
            generation=query.generation,
            limit_tokens=query.generation.max_output_tokens,
        )
        for query, prompt in zip(queries, prompts, strict=True)
    ]


def _check_against(deployment: DeploymentRecord, queries: Sequence[Query], paths: Sequence[str]) -> None:
    """Check what depends on the model but not on its tokenizer; raises InvalidArgumentError or RefusedError."""
    context = limits.context_tokens(deployment)
    vocabulary = deployment.facts.vocabulary_size
    violations = Violations()
    for query, path in zip(queries, paths, strict=True):
        if query.adapter:
            violations.add(f"{path}.adapter", f"must be empty: {deployment.name} has no adapters")
        ids = query.prompt_token_ids.ids
        if len(ids) >= context:
            raise refusals.prompt_too_long(len(ids), context, path)
        if ids and (largest := max(ids)) >= vocabulary:
            violations.add(
                f"{path}.prompt_token_ids.ids",
                f"must be below {vocabulary:,}, the size of the model's vocabulary; got {largest:,}",
            )
    violations.raise_if_any()
