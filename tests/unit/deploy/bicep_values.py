"""What expressions of Bicep come to: resources, what only Azure will know, and the functions that are used here."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.unit.deploy.bicep_syntax import Wrong

SUBSCRIPTION = "/subscriptions/sub"


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource that is made, or (existing) referred to."""

    type: str
    version: str
    name: str
    id: str
    body: Mapping[str, Any]
    existing: bool
    scope: str
    file: str

    def __getitem__(self, key: str) -> Any:
        value: Any = self.body
        for part in key.split("."):
            value = value[part]
        return value


@dataclass(frozen=True)
class Later:
    """Properties of a resource: those that are written down, and those that Azure will say."""

    called: str
    known: Any


def resource_id(within: str, kind: str, name: str) -> str:
    provider, *types = kind.split("/")
    names = name.split("/")
    if len(types) != len(names):
        raise Wrong(f"a {kind} cannot be called {name}")
    return f"{within}/providers/{provider}/" + "/".join(f"{t}/{n}" for t, n in zip(types, names, strict=True))


def _union(*dicts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for one in dicts for key, value in one.items()}


def _subnet(prefix: str, size: int, index: int) -> str:
    return str(list(ipaddress.ip_network(prefix).subnets(new_prefix=size))[index])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cidrSubnet": _subnet,
    "contains": lambda items, item: item in items,
    "concat": lambda *lists: [item for one in lists for item in one],
    "empty": lambda value: not value,
    "environment": lambda: {"suffixes": {"storage": "core.windows.net"}},
    "filter": lambda items, test: [item for item in items if test(item)],
    "flatten": lambda lists: [item for one in lists for item in one],
    "guid": lambda *parts: "guid-" + hashlib.sha256("|".join(parts).encode()).hexdigest()[:32],
    "json": json.loads,
    "map": lambda items, make: [make(item) for item in items],
    "replace": lambda text, old, new: text.replace(old, new),
    "string": json.dumps,
    "subscription": lambda: {"tenantId": "tenant", "subscriptionId": "sub"},
    "subscriptionResourceId": lambda kind, name: resource_id(SUBSCRIPTION, kind, name),
    "take": lambda text, count: text[:count],
    "union": _union,
    "uniqueString": lambda *parts: re.sub("[^a-z0-9]", "", hashlib.sha256("|".join(parts).encode()).hexdigest())[:13],
}
