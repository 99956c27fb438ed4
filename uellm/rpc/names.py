"""Resource names: what they look like, and the only way to take them apart."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.rpc.violations import Violations, quote


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model as one tenant sees it, `tenants/{tenant}/models/{model}`."""

    tenant: str
    model: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/models/{self.model}"

    @classmethod
    def parse(cls, text: str, field: str = "parent") -> ModelName:
        """Takes a name apart.

        Raises:
            InvalidArgumentError: it is none; every violation names `field`.
        """
        tenant, model = _segments(text, field, ("tenants", "models"))
        violations = Violations()
        violations.identifier(field, tenant)
        violations.model_identifier(field, model)
        violations.raise_if_any()
        return cls(tenant, model)

    def query(self, query_id: str) -> QueryName:
        """Returns the name of one of this model's queries."""
        return QueryName(self.tenant, self.model, query_id)


@dataclass(frozen=True, slots=True)
class QueryName:
    """A query, `tenants/{tenant}/models/{model}/queries/{query}`."""

    tenant: str
    model: str
    query: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/models/{self.model}/queries/{self.query}"

    @classmethod
    def parse(cls, text: str, field: str = "name") -> QueryName:
        """Takes a name apart.

        Raises:
            InvalidArgumentError: it is none; every violation names `field`.
        """
        tenant, model, query = _segments(text, field, ("tenants", "models", "queries"))
        violations = Violations()
        violations.identifier(field, tenant)
        violations.model_identifier(field, model)
        violations.identifier(field, query)
        violations.raise_if_any()
        return cls(tenant, model, query)

    @property
    def parent(self) -> ModelName:
        """The model that the query is for."""
        return ModelName(self.tenant, self.model)


@dataclass(frozen=True, slots=True)
class DeploymentName:
    """A deployment, `deployments/{deployment}`."""

    deployment: str

    def __str__(self) -> str:
        return f"deployments/{self.deployment}"

    @classmethod
    def parse(cls, text: str, field: str = "name") -> DeploymentName:
        """Takes a name apart.

        Raises:
            InvalidArgumentError: it is none; every violation names `field`.
        """
        (deployment,) = _segments(text, field, ("deployments",))
        violations = Violations()
        violations.identifier(field, deployment)
        violations.raise_if_any()
        return cls(deployment)


def _segments(text: str, field: str, collections: tuple[str, ...]) -> list[str]:
    """Splits `{collection}/{id}/...` and returns the ids, unchecked."""
    parts = text.split("/", 2 * len(collections))
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        pattern = "/".join(f"{collection}/{{{_SINGULAR[collection]}}}" for collection in collections)
        raise InvalidArgumentError([FieldViolation(field, f"must be {pattern!r}; got {quote(text)}")])
    return parts[1::2]


_SINGULAR = {"tenants": "tenant", "models": "model", "queries": "query", "deployments": "deployment"}
