"""From the table of rights to Azure: `python -m deploy.azure.rights` writes what the templates and their README say.

`rights.json` is what the Bicep files read: which queues and containers there are, and which role each grant becomes.
The table in README.md says the same for people. Both are checked against `messages/rights.yaml` by tests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from messages import names
from messages.rights import OWN, SILO, Right, Verb, table

HERE: Final = Path(__file__).resolve().parent
JSON: Final = HERE / "rights.json"
README: Final = HERE / "README.md"
BEGIN: Final = "<!-- begin: python -m deploy.azure.rights -->"
END: Final = "<!-- end -->"


@dataclass(frozen=True, slots=True)
class AzureRole:
    """A role of Azure that a grant becomes."""

    called: str
    id: str | None = None
    """Of a built-in role; the others are made by modules/roles.bicep."""

    @property
    def is_built_in(self) -> bool:
        return self.id is not None


ROLES: Final = {
    "sender": AzureRole("Azure Service Bus Data Sender", "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39"),
    "receiver": AzureRole("Azure Service Bus Data Receiver", "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0"),
    "reader": AzureRole("Storage Blob Data Reader", "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"),
    # No built-in role writes without deleting, creates without replacing, or deletes blobs and not their container.
    "keeper": AzureRole("Silobus Blob Keeper"),
    "writer": AzureRole("Silobus Blob Writer"),
    "remover": AzureRole("Silobus Blob Remover"),
    "creator": AzureRole("Silobus Blob Creator"),
}
OF_RIGHT: Final = {Right.SEND: "sender", Right.LISTEN: "receiver"}
OF_VERBS: Final = {
    frozenset({Verb.READ}): "reader",
    frozenset({Verb.READ, Verb.LIST}): "reader",
    frozenset({Verb.READ, Verb.LIST, Verb.WRITE}): "writer",
    frozenset({Verb.READ, Verb.LIST, Verb.CREATE, Verb.WRITE, Verb.DELETE}): "keeper",
    frozenset({Verb.READ, Verb.LIST, Verb.DELETE}): "remover",
    frozenset({Verb.READ, Verb.LIST, Verb.CREATE}): "creator",
    frozenset({Verb.READ, Verb.CREATE}): "creator",
}
"""The narrowest role that holds these verbs. Azure has one right for reading and listing."""


def grants() -> Iterator[dict[str, str]]:
    """One row per role assignment; `{silo}` stands for each silo."""
    for who, role in table().root.items():
        for row in role.queues:
            place = row.queue.replace(OWN, SILO)
            for right in sorted(row.rights):
                yield {"who": who, "on": "queue", "place": place, "role": OF_RIGHT[right], "why": row.why}
        for place_row in role.containers:
            place = place_row.container.replace(OWN, SILO)
            yield {
                "who": who,
                "on": "container",
                "place": place,
                "role": OF_VERBS[place_row.verbs],
                "why": place_row.why,
            }


def data() -> dict[str, Any]:
    """What rights.json holds."""
    rows = list(grants())
    all_queues, all_containers = names.queues([SILO]), names.containers([SILO])
    return {
        "about": "Written by `make rights` from messages/rights.yaml. Do not edit.",
        "hub": {
            "queues": [queue for queue in all_queues if SILO not in queue],
            "containers": [container for container in all_containers if SILO not in container],
            "grants": [row for row in rows if SILO not in row["place"] and row["who"] != "agent"],
        },
        "silo": {
            "queues": [queue for queue in all_queues if SILO in queue],
            "containers": [container for container in all_containers if SILO in container],
            "grants": [row for row in rows if SILO in row["place"] or row["who"] == "agent"],
        },
    }


def rendered() -> str:
    """What is in rights.json."""
    return json.dumps(data(), indent=2, ensure_ascii=False) + "\n"


def markdown() -> str:
    """The table in README.md."""
    lines = ["| who | scope | role | why |", "|---|---|---|---|"]
    lines += [f"| {r['who']} | {r['on']} `{r['place']}` | {ROLES[r['role']].called} | {r['why']} |" for r in grants()]
    return "\n".join(lines)


def with_table(document: str) -> str:
    """A document with the table between its marks. Raises ValueError where there are none."""
    before, _, rest = document.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"there is no place between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def main() -> int:
    """Writes both."""
    JSON.write_text(rendered(), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
