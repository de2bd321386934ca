"""Who may do what on the bus and in the store: `rights.yaml`, read, checked and spelled out for the silos there are.

Pure: nothing here grants anything. Local federations make keys of it (`orchestrator.cli.keys`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Annotated, Final, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from messages import names
from messages.settings import repeated_keys

OWN: Final = "{own}"
SILO: Final = "{silo}"

ORCHESTRATOR: Final = "orchestrator"
OPERATOR: Final = "operator"
AGENT: Final = "agent"
COMPUTE: Final = "compute"
DEPLOYER: Final = "deployer"


class Right(StrEnum):
    """What may be done to a queue. Manage is no word of the table."""

    SEND = "Send"
    LISTEN = "Listen"


class Verb(StrEnum):
    """What may be done to the blobs of a container."""

    READ = "read"
    LIST = "list"
    CREATE = "create"
    WRITE = "write"
    DELETE = "delete"


Why = Annotated[str, Field(min_length=8)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QueueGrant(_Row):
    """One row: rights on a queue, or on one queue of every silo, or on one of the agent's own silo."""

    queue: str
    rights: Annotated[frozenset[Right], Field(min_length=1)]
    why: Why


class ContainerGrant(_Row):
    """One row: verbs on a container, with the same patterns."""

    container: str
    verbs: Annotated[frozenset[Verb], Field(min_length=1)]
    why: Why


class Role(_Row):
    """What a role is granted. One whose rows say `{own}` has an identity per silo; every other role has one.

    One without rows is there to say that it is granted nothing.
    """

    what: Annotated[str, Field(alias="is")]
    queues: tuple[QueueGrant, ...] = ()
    containers: tuple[ContainerGrant, ...] = ()

    @property
    def patterns(self) -> list[str]:
        return [*(row.queue for row in self.queues), *(row.container for row in self.containers)]

    @property
    def is_of_a_silo(self) -> bool:
        return any(OWN in pattern for pattern in self.patterns)

    @model_validator(mode="after")
    def _says_each_thing_once(self) -> Self:
        if len(set(self.patterns)) != len(self.patterns):
            raise ValueError("a queue or a container is there twice")
        if self.is_of_a_silo and any(SILO in pattern for pattern in self.patterns):
            raise ValueError(f"a role is of one silo ({OWN}) or of the federation ({SILO})")
        return self


class Table(RootModel[Mapping[str, Role]]):
    """The table: roles by name."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _speaks_of_what_there_is(self) -> Self:
        known = {place for silo in (OWN, SILO) for place in (*names.queues([silo]), *names.containers([silo]))}
        for name, role in self.root.items():
            if strange := set(role.patterns) - known:
                raise ValueError(f"{name}: no queue or container is called {min(strange)}")
        return self


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody with an identity of its own, and exactly what it may do."""

    role: str
    silo: str | None
    queues: Mapping[str, frozenset[Right]]
    containers: Mapping[str, frozenset[Verb]]

    @property
    def name(self) -> str:
        """`orchestrator`, `agent-north`: what its authorization rule is called."""
        return self.role if self.silo is None else f"{self.role}-{self.silo}"

    def may(self, right: Right, queue: str) -> bool:
        """Whether it has this right on this queue."""
        return right in self.queues.get(queue, ())


def parse(text: str) -> Table:
    """The table in a YAML text. Raises ValueError (pydantic's ValidationError is one)."""
    if twice := next(repeated_keys(yaml.compose(text)), None):
        raise ValueError(f"line {twice.start_mark.line + 1}: {twice.value} is there twice")
    return Table.model_validate(yaml.safe_load(text))


@cache
def table() -> Table:
    """The table of this version."""
    return parse(files("messages").joinpath("rights.yaml").read_text(encoding="utf-8"))


def principals(silos: Sequence[str], of: Table | None = None) -> list[Principal]:
    """Everybody who is granted anything in a federation of these silos, in a stable order."""
    return [
        _principal(name, role, silo, silos)
        for name, role in (of or table()).root.items()
        if role.patterns
        for silo in (silos if role.is_of_a_silo else (None,))
    ]


def _principal(name: str, role: Role, own: str | None, silos: Sequence[str]) -> Principal:
    queues = {queue: row.rights for row in role.queues for queue in _spelled_out(row.queue, own, silos)}
    containers = {place: row.verbs for row in role.containers for place in _spelled_out(row.container, own, silos)}
    return Principal(name, own, queues, containers)


def _spelled_out(pattern: str, own: str | None, silos: Sequence[str]) -> list[str]:
    if own is not None:
        return [pattern.replace(OWN, own)]
    return [pattern.replace(SILO, silo) for silo in silos] if SILO in pattern else [pattern]
