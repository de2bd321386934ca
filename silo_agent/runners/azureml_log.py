"""What the owner of a silo is told of its jobs: in the try's own file, where a local script's output is as well.

Here lives how it is written down. AzureML's messages and studio links are here and nowhere else outside AzureML.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import final

from silo_agent.runners.azureml_verdict import Left
from silo_agent.runners.azureml_workspace import Seen, Story


@final
class OwnersLog:
    """`output.txt` of one try."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def say(self, text: str) -> None:
        """Adds a line of the agent's."""
        await self._add(f"silobus-agent: {text}\n")

    async def end(self, seen: Seen, story: Story, left: Sequence[Left]) -> None:
        """How a job ended, in AzureML's words, and what its processes printed."""
        for number, one in enumerate(left):
            head = f"--- process {number + 1} of {len(left)} ended with status {one.status}\n" if len(left) > 1 else ""
            await self._add(head + one.printed.decode(errors="replace").rstrip("\n") + "\n")
        await self.say(f"job {seen.name} is {seen.state}: {seen.studio}")
        if story.code or story.message:
            await self.say(f"AzureML says: {story.code}: {story.message}")

    async def _add(self, text: str) -> None:
        await asyncio.to_thread(_append, self._path, text)


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
