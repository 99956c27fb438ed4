"""Profile queries: no side effect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uellm.cost.lengths import LengthDistribution
from uellm.rpc.validation import Violations
from uellm.v1.query_pb2 import Query, ResourceProfile
from uellm.v1.stream_pb2 import DeploymentRecord
from uellm_profiler.app.ports import Deployments, EncodedPrompt, PromptError, Tokenizer
from uellm_profiler.domain import limits, refusals
from uellm_profiler.domain.predictor import LengthPredictor, PredictorInput
from uellm_profiler.domain.profile import resource_profile


@dataclass(frozen=True, slots=True)
class ProfiledPrompt:
    """A query that was profiled."""

    query: Query
    """With every default filled in."""
    prompt: EncodedPrompt
    profile: ResourceProfile


def random_seed() -> int:
    """A seed for a query that came without one."""
    return _random.randrange(limits.SEED_LIMIT)


_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Profiler:
    """Profiles valid queries for one model."""

    deployments: Deployments
    tokenizer: Tokenizer
    predictor: LengthPredictor
    new_seed: Callable[[], int] = random_seed

    async def profile(self, model: str, queries: Sequence[Query], paths: Sequence[str]) -> list[ProfiledPrompt]:
        """Profile queries that passed `check_query`; `paths` are theirs in the request.

        Raises:
            RefusedError: MODEL_NOT_DEPLOYED, or PROMPT_TOO_LONG for the first query of which it is true.
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
        lengths = await self._predict(model, filled, prompts)
        version = f"{self.predictor.kind}/{self.predictor.version}"
        return [
            ProfiledPrompt(
                query,
                prompt,
                resource_profile(
                    deployment,
                    len(prompt.token_ids),
                    length.truncate(query.generation.max_output_tokens),
                    priority=query.priority,
                    predictor_version=version,
                ),
            )
            for query, prompt, length in zip(filled, prompts, lengths, strict=True)
        ]

    async def _encode(
        self, deployment: DeploymentRecord, queries: Sequence[Query], paths: Sequence[str]
    ) -> list[EncodedPrompt]:
        encoded = await asyncio.gather(
            *(self.tokenizer.encode(deployment.tokenizer_path, query) for query in queries), return_exceptions=True
        )
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

    async def _predict(
        self, model: str, queries: Sequence[Query], prompts: Sequence[EncodedPrompt]
    ) -> Sequence[LengthDistribution]:
        return await self.predictor.predict(
            [
                PredictorInput(
                    model=model,
                    text=prompt.text,
                    prompt_tokens=len(prompt.token_ids),
                    generation=query.generation,
                    limit_tokens=query.generation.max_output_tokens,
                )
                for query, prompt in zip(queries, prompts, strict=True)
            ]
        )


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
