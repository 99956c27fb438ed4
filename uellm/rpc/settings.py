"""Configuration of a service: defaults, then a file, then environment variables, then flags; the last one wins."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from uellm.rpc.config import ServerConfig

_EXIT_INVALID = 2
_LISTS = (list, tuple, set, frozenset)


def _check_redis_url(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return url


RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
"""URL of a Redis server; secret, since it may hold a password."""


class ServiceSettings(BaseSettings, ServerConfig):
    """What every service is configured with. A service adds fields, each with a docstring and `examples`.

    It is the `ServerConfig` of the service's own server as well.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, env_prefix="UELLM_", env_ignore_empty=True
    )

    redis_url: RedisUrl = Field(default=SecretStr("redis://127.0.0.1:6379/0"), examples=["redis://127.0.0.1:6379/0"])
    """Redis that holds queues, records and outcomes."""
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", examples=["info"])
    """Least severe level that is logged."""
    log_format: Literal["auto", "json", "console"] = Field(default="auto", examples=["json"])
    """`json`: one object a line; `console`: readable; `auto`: console on a terminal, else json."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Takes values from the constructor's arguments only: `load` alone reads the surroundings."""
        return (init_settings,)


S = TypeVar("S", bound=ServiceSettings)


def load(settings_class: type[S], argv: Sequence[str], *, prog: str = "") -> S:
    """Reads the configuration of a process: file, environment, flags.

    Ends the process with exit code 0 after `--help` and `--print-config`, and with exit code 2 and one line per wrong
    setting on stderr if something is wrong.

    Args:
        settings_class: what to read.
        argv: the flags, without the program's name.
        prog: how the program is called, for the help text.
    """
    arguments = vars(_parser(settings_class, prog).parse_args(argv))
    file: str | None = arguments.pop("config")
    print_config: bool = arguments.pop("print_config")
    flags = {name: str(value) for name, value in arguments.items() if value is not None}
    try:
        values = {**_read_file(settings_class, file), **_TextSource(settings_class, flags)()}
        settings = settings_class(**values)
    except ValidationError as error:
        _fail([_describe(settings_class, wrong) for wrong in error.errors(include_url=False)])
    except (OSError, ValueError) as error:
        _fail([f"--config {file}: {error}"])
    if print_config:
        sys.stdout.write(json.dumps(settings.model_dump(mode="json"), indent=2) + "\n")
        sys.exit(0)
    return settings


class _TextSource(EnvSettingsSource):
    """Values that come as text: environment variables and, before them, flags."""

    def __init__(self, settings_class: type[BaseSettings], flags: Mapping[str, str]) -> None:
        super().__init__(settings_class)
        given = {f"{self.env_prefix}{name}".lower(): value for name, value in flags.items()}
        self.env_vars = {**self.env_vars, **given}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Reads JSON, or a list separated by commas; leaves the rest to the field's own validation."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value.split(",") if get_origin(field.annotation) in _LISTS else value


def _read_file(settings_class: type[BaseSettings], file: str | None) -> dict[str, Any]:
    """Reads TOML or, by any other ending, YAML, of which JSON is a part."""
    if file is None:
        return {}
    if not Path(file).is_file():
        raise FileNotFoundError("there is no such file")
    if file.endswith(".toml"):
        return TomlConfigSettingsSource(settings_class, Path(file))()
    try:
        return YamlConfigSettingsSource(settings_class, Path(file))()
    except Exception as error:  # the YAML library is not imported here, so its errors have no name
        raise ValueError(f"is no YAML mapping: {error}") from error


def _parser(settings_class: type[BaseSettings], prog: str) -> argparse.ArgumentParser:
    """Returns a parser with one flag per setting; flags that are not given come back as None."""
    parser = argparse.ArgumentParser(
        prog=prog or f"python -m {settings_class.__module__.partition('.')[0]}",
        description=inspect.cleandoc(settings_class.__doc__ or "").partition("\n\n")[0],
        epilog="Flags win over environment variables, these over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML or YAML file with settings, by field name")
    parser.add_argument("--print-config", action="store_true", help="print the settings, secrets masked, and exit")
    for name, field in settings_class.model_fields.items():
        boolean = argparse.BooleanOptionalAction if field.annotation is bool else None
        shape: dict[str, Any] = {"action": boolean} if boolean else {"metavar": _metavar(field)}
        parser.add_argument(_flag(name), dest=name, default=None, help=_help(settings_class, name, field), **shape)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _environment_name(settings_class: type[BaseSettings], name: str) -> str:
    return f"{settings_class.model_config.get('env_prefix', '')}{name}".upper()


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "{" + ",".join(map(str, get_args(field.annotation))) + "}"
    return "VALUE"


def _help(settings_class: type[BaseSettings], name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, SecretStr):  # one that is written in the code is no secret
        default = default.get_secret_value()
    shown = "required" if default is PydanticUndefined else f"default: {'none' if default in (None, '') else default}"
    text = f"{field.description or ''} [{_environment_name(settings_class, name)}; {shown}]"
    return text.replace("%", "%%")


def _describe(settings_class: type[BaseSettings], wrong: ErrorDetails) -> str:
    """Says in one line which setting is wrong, why, and what would be right."""
    message = wrong["msg"].removeprefix("Value error, ")
    if not wrong["loc"]:
        return message
    name = str(wrong["loc"][0])
    field = settings_class.model_fields.get(name)
    if field is None:
        return f"{name}: there is no such setting; --help lists them"
    inner = "".join(f"[{part}]" for part in wrong["loc"][1:])
    given = "" if wrong["type"] == "missing" or _is_secret(field) else f"; got {wrong['input']!r}"
    example = f"; for example {_flag(name)} {field.examples[0]}" if field.examples else ""
    return f"{_flag(name)} ({_environment_name(settings_class, name)}){inner}: {message}{given}{example}"


def _is_secret(field: FieldInfo) -> bool:
    return "Secret" in str(field.annotation)


def _fail(lines: Sequence[str]) -> NoReturn:
    sys.stderr.write("".join(f"{' '.join(line.split())}\n" for line in lines))
    sys.exit(_EXIT_INVALID)
