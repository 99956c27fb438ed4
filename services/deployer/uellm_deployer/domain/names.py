"""Names that the deployer makes: they become Triton models and folders."""

from __future__ import annotations

import re

SEPARATOR = "--"
"""Between a logical model and a plan hash in the name of a Triton model; no logical model contains it."""

HASH_DIGITS = 10
_ID_CHARACTERS = 63
_ENGINE = "-engine"
_TRITON_MODEL = re.compile(rf"([a-z0-9](?:[a-z0-9.-]{{0,61}}[a-z0-9])?){SEPARATOR}[0-9a-f]{{{HASH_DIGITS}}}")


def is_triton_model(name: str) -> bool:
    """Whether this is a plan-unique name `{model}--{plan hash}`, and so safe as a folder."""
    match = _TRITON_MODEL.fullmatch(name)
    return match is not None and SEPARATOR not in match[1] and ".." not in match[1]


def triton_model(model: str, plan_hash: str) -> str:
    """Plan-unique name, so that nothing is ever modified under a name that is loaded."""
    return f"{model}{SEPARATOR}{plan_hash}"


def engine_model(name: str) -> str:
    """The second Triton model of those that have two: an engine with tensors of its own, behind a front."""
    return f"{name}{_ENGINE}"


def is_engine_model(name: str) -> bool:
    """Whether it is such a name, and so safe as a folder."""
    return name.endswith(_ENGINE) and is_triton_model(name.removesuffix(_ENGINE))


def default_deployment_id(model: str, plan_hash: str) -> str:
    """The id of a deployment whose creator named none: made of the model and the plan."""
    stem = re.sub(r"[.-]+", "-", model)[: _ID_CHARACTERS - HASH_DIGITS - 1].rstrip("-")
    return f"{stem}-{plan_hash}"
