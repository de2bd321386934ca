"""A federation's bus for each file of these tests, and a silo of its own for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.check.broken_silo import Silo, enrolled
from tests.federation import Federation


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with enrolled() as federation:
        yield federation


@pytest.fixture
def silo(federation: Federation, tmp_path: Path) -> Silo:
    return Silo(federation, tmp_path)


@pytest.fixture
def other(federation: Federation, tmp_path: Path) -> Callable[[str], Silo]:
    def made(name: str) -> Silo:
        (tmp_path / name).mkdir()
        return Silo(federation, tmp_path / name, name)

    return made
