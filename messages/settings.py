"""Settings both halves share, and how a YAML file becomes frozen settings: read once, checked whole, errors for people.

Secrets never stand in the file: it names an environment variable or a file that holds one, read only when connecting.
Relative paths mean the directory of the YAML file, wherever the process was started. Nothing here opens a connection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from messages.errors import SilobusError

M = TypeVar("M", bound=BaseModel)


class SettingsError(SilobusError):
    """A settings file, or a secret it names, is missing or wrong; the text says where, and what to do."""


def _resolve(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("directory", Path.cwd())
    return Path(os.path.normpath(Path(base) / path.expanduser()))


SettingsPath = Annotated[Path, AfterValidator(_resolve)]
"""A path in a settings file: absolute once loaded."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable."""
ContainerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")]
"""The name of a container of blobs."""
Credential = Literal["managed-identity", "workload-identity", "azure-cli", "environment", "default"]
"""How this process proves who it is to Azure. `default` tries them all, which is slow and for laptops."""


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown fields are refused, so that a typo is never silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class ProxySettings(Settings):
    """An HTTP proxy between this process and Azure; with it the bus uses AMQP over WebSocket."""

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)]
    user_env: VariableName | None = None
    password_env: VariableName | None = None

    def user(self) -> str | None:
        """The user name, from the environment."""
        return None if self.user_env is None else _from_environment(self.user_env, "bus.proxy.user_env")

    def password(self) -> SecretStr | None:
        """The password, from the environment."""
        if self.password_env is None:
            return None
        return SecretStr(_from_environment(self.password_env, "bus.proxy.password_env"))


class BusSettings(Settings):
    """Where the bus is and how to get in: a connection string (by reference), or a namespace and a credential."""

    connection_string_env: VariableName | None = None
    connection_string_file: SettingsPath | None = None
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] | None = None
    credential: Credential | None = None
    transport: Literal["amqp", "amqp-over-websocket"] = "amqp"
    proxy: ProxySettings | None = None
    ca_file: SettingsPath | None = None

    @model_validator(mode="after")
    def _says_one_way_in(self) -> Self:
        _exactly_one(self, ("connection_string_env", "connection_string_file", "namespace"))
        if (self.namespace is None) != (self.credential is None):
            raise ValueError("`namespace` and `credential` go together; set both, or neither")
        return self

    def connection_string(self) -> SecretStr | None:
        """The connection string, if that is the way in. Raises SettingsError when it is not where it should be."""
        return _secret("bus", self.connection_string_env, self.connection_string_file)


class StoreSettings(Settings):
    """Where blobs are: a directory, or a storage account and how to get in."""

    directory: SettingsPath | None = None
    account_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] | None = None
    credential: Credential | None = None
    connection_string_env: VariableName | None = None
    connection_string_file: SettingsPath | None = None
    sas_env: VariableName | None = None
    sas_file: SettingsPath | None = None
    sas_files: Mapping[ContainerName, SettingsPath] | None = None
    """A signature for each container, in a file of its own: then each can have exactly its verbs."""
    ca_file: SettingsPath | None = None

    @model_validator(mode="after")
    def _says_one_place(self) -> Self:
        _exactly_one(self, ("directory", "account_url", "connection_string_env", "connection_string_file"))
        keys = [n for n in ("credential", "sas_env", "sas_file", "sas_files") if getattr(self, n) is not None]
        if self.account_url is None and keys:
            raise ValueError(f"`{keys[0]}` belongs to `account_url`")
        if self.account_url is not None and len(keys) != 1:
            raise ValueError(
                "with `account_url` set exactly one of `credential`, `sas_env`, `sas_file` and `sas_files`"
            )
        return self

    def connection_string(self) -> SecretStr | None:
        """The connection string, if that is the way in. Raises SettingsError when it is not where it should be."""
        return _secret("store", self.connection_string_env, self.connection_string_file)

    def sas(self) -> SecretStr | None:
        """The shared access signature, if that is the way in. Raises SettingsError when it is not where it is said."""
        return _secret("store", self.sas_env, self.sas_file, what="sas")

    def sas_by_container(self) -> dict[str, SecretStr] | None:
        """The signature of each container, if those are the way in. Raises SettingsError as `sas` does."""
        if self.sas_files is None:
            return None
        return {name: _from_file(path, f"store.sas_files.{name}") for name, path in self.sas_files.items()}


def load_yaml(path: Path, model: type[M]) -> M:
    """The settings in a YAML file. Raises SettingsError naming the file, the line, every wrong field and what to do."""
    path = Path(os.path.abspath(path))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: there is no such file.") from None
    except PermissionError:
        raise SettingsError(f"{path}: this user may not read it; its owner may.") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); name a file.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: cannot be read; it is no UTF-8 text file.") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except RecursionError:
        raise SettingsError(f"{path}: is nested too deeply for settings.") from None
    except ValueError as error:  # a date that there is not, a number of too many digits
        raise SettingsError(f"{path}: holds a value that there is not: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(
            f"{path}{line}: not YAML: {getattr(error, 'problem', None) or 'cannot be parsed'}."
        ) from None
    problems = [f"line {node.start_mark.line + 1}: `{node.value}` is there twice" for node in repeated_keys(root)]
    if not isinstance(data, dict):
        problems.append("it should hold `field: value` lines")
    if problems:
        raise SettingsError(_listed(path, problems))
    try:
        return model.model_validate(data, context={"directory": path.parent})
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)
        raise SettingsError(_listed(path, [_explain(dict(d), root) for d in details[:20]])) from None


def _listed(path: Path, problems: list[str]) -> str:
    return "\n".join([f"{path} is not right:", *(f"  {p}" for p in problems)])


def _explain(problem: dict[str, Any], root: yaml.Node | None) -> str:
    location: Sequence[str | int] = problem["loc"]
    field, line = ".".join(map(str, location)), _line_of(root, location)
    match problem["type"]:
        case "extra_forbidden" if str(location[-1]) in ("connection_string", "sas", "account_key", "password"):
            text = f"secrets never stand in this file; name them in `{location[-1]}_env` or `{location[-1]}_file`"
        case "extra_forbidden":
            text = "there is no such field; check its spelling and indentation, or remove it"
        case "missing":
            text = "is missing; add it"
        case _:
            text = str(problem["msg"]).removeprefix("Value error, ")
    return f"line {line}: {field}: {text}" if field else f"line {line}: {text}"


def _line_of(node: yaml.Node | None, location: Sequence[str | int]) -> int:
    line = 1
    for step in location:
        match node:
            case yaml.MappingNode():
                found = [(key, value) for key, value in node.value if key.value == str(step)]
                if not found:
                    return line
                key, node = found[0]
                line = key.start_mark.line + 1
            case yaml.SequenceNode() if isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line + 1
            case _:
                return line
    return line


def repeated_keys(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Keys given twice, of which YAML would silently take the last: in a policy that could lift a limit."""
    waiting = [node]
    known: set[int] = set()  # a node may stand in many places, even in itself
    while waiting:
        node = waiting.pop()
        if id(node) in known:
            continue
        known.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        yield key
                    seen.add(key.value)
            waiting += [value for _, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)


def _exactly_one(settings: BaseModel, fields: tuple[str, ...]) -> None:
    given = [f for f in fields if getattr(settings, f) is not None]
    if len(given) != 1:
        choice = ", ".join(f"`{f}`" for f in fields)
        raise ValueError(f"set exactly one of {choice}; {len(given) or 'none'} given")


def _secret(section: str, variable: str | None, path: Path | None, what: str = "connection_string") -> SecretStr | None:
    if variable is not None:
        return SecretStr(_from_environment(variable, f"{section}.{what}_env"))
    return None if path is None else _from_file(path, f"{section}.{what}_file")


def _from_file(path: Path, field: str) -> SecretStr:
    try:
        value = path.read_text(encoding="utf-8").strip()
    except PermissionError:
        raise SettingsError(f"{field}: this user may not read {path}; its owner may.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{field}: {path} cannot be read ({type(error).__name__}); create it, mode 0600.") from None
    if not value:
        raise SettingsError(f"{field}: {path} is empty; put the secret into it.")
    return SecretStr(value)


def _from_environment(variable: str, field: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise SettingsError(f"{field}: the environment variable {variable} is not set; set it for this process.")
    return value
