"""Chat templates as models ship them: Jinja in a sandbox, with the names and filters that such templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from uellm_profiler.app.ports import PromptError

_MAX_ERROR_CHARACTERS = 200


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile the template; raises `jinja2.TemplateError` if it is none.

        Args:
            source: the template.
            special_tokens: variables such as `bos_token`.
        """
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]], field: str) -> str:
        """Render a conversation up to where the answer begins; `field` is where it stands in the query.

        Raises:
            PromptError: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except Exception as error:  # a template is a program: it fails in any way
            reason = str(error)[:_MAX_ERROR_CHARACTERS]
            raise PromptError(field, f"the model's chat template refuses it: {reason}") from error


def read_chat_template(
    folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template in `folder`: `chat_template.jinja`, or the default one of `config` (tokenizer_config.json).

    None if the model has none.
    """
    file = folder / "chat_template.jinja"
    source = file.read_text("utf-8") if file.exists() else config.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return ChatTemplate(source, special_tokens) if source else None


class _GenerationTag(Extension):
    """`{% generation %}` marks the answers for training; here it only shows what it contains."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> Node | list[Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
