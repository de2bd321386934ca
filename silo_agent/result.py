"""What a script made of a round, examined: the report, the payloads of the update, and what of both may leave.

Here lives the judgement on files that the script wrote, none of which is trusted. `notes` name tensors, metrics and
paths: they stay in the silo. Nothing is sent here.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from messages.codec import MAX_MESSAGE_BYTES
from messages.errors import InvalidWeights
from messages.fields import Count, Sha256
from messages.schemas import DeclineReason, FailureCategory, MetricReport, Purpose, Role, RoundAnnounced
from messages.weights import DTYPES, Layout, Scan, WeightsFault, scan_file, verify
from silo_agent import outbound
from silo_agent.home import TryDirectory
from silo_agent.policy import Outbound
from silo_agent.roles import layout_made, made_as, wanted

_LONGEST_REPORT: Final = 8 << 20
_LONGEST_METRICS: Final = MAX_MESSAGE_BYTES - 50_000
"""The rest of a message is much smaller than what is left."""


@dataclass(frozen=True, slots=True)
class Made:
    """A payload: what is in it, and where it is."""

    scan: Scan
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """A sound result, and what of it may leave."""

    update: Mapping[Role, Made]
    """The payloads, the weights first; none when evaluating."""
    samples: int
    steps: int
    metrics: tuple[MetricReport, ...]
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Withheld:
    """A sound result that may not leave."""

    reason: DeclineReason
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsound:
    """No result: the try has failed."""

    category: FailureCategory
    notes: tuple[str, ...]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256 | None = None
    """Of what came over a network. Else it would only repeat what is found here."""


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    schema_version: Literal[1]
    samples: Count
    steps: Count
    update: _File | None
    control: _File | None = None
    metrics: Annotated[list[MetricReport], Field(max_length=200)] = []


def examine(
    attempt: TryDirectory, announced: RoundAnnounced, received: Layout | None, rules: Outbound
) -> Allowed | Withheld | Unsound:
    """Judges one try. `received` is the layout of the weights it started from. Blocks: use it in a thread."""
    try:
        report = _Report.model_validate_json(_read_regular(attempt.output / "report.json", _LONGEST_REPORT))
    except FileNotFoundError:
        return Unsound(FailureCategory.NO_REPORT, ())
    except (OSError, ValidationError) as error:
        return Unsound(FailureCategory.REPORT_INVALID, (str(error),))
    told: dict[Role, _File | None] = {"weights": report.update, "control": report.control}
    for role, file in told.items():
        if (role in wanted(announced)) is (file is None):
            word = "update" if role == "weights" else role
            note = (
                f"a round to {announced.purpose} with {announced.strategy} has {'an' if file is None else 'no'} {word}"
            )
            uncorrected = role == "control" and file is None
            return Unsound(FailureCategory.NOT_CORRECTED if uncorrected else FailureCategory.REPORT_INVALID, (note,))
    if odd := _what_cannot_be_kept(attempt.output / "state"):
        return Unsound(FailureCategory.REPORT_INVALID, (f"{odd} cannot be kept: it is no file and no directory",))
    update: dict[Role, Made] = {}
    for role, file in told.items():
        if file is None:
            continue
        path = attempt.output / made_as(role)
        expected = layout_made(role, received, announced) if received is not None else None
        try:
            update[role] = Made(_scan(path, file, expected), path)
        except InvalidWeights as fault:
            not_finite = fault.reason == WeightsFault.NOT_FINITE
            category = FailureCategory.UPDATE_NOT_FINITE if not_finite else FailureCategory.UPDATE_INVALID
            return Unsound(category, (fault.description,))
        except OSError as error:
            return Unsound(FailureCategory.UPDATE_INVALID, (str(error),))
        if _has_metadata(path):
            note = f"the header of {path.name} has __metadata__, which may say anything: write it without"
            return Withheld(DeclineReason.OUTBOUND_FORBIDDEN, (note,))
    # Initialising is not charged to the budget: nothing that was learnt from data may leave with it.
    initialises = announced.purpose is Purpose.INITIALISE
    leaving = outbound.apply(
        rules,
        purpose=announced.purpose,
        update={role: tensors_of(made.scan.layout, made.scan.bytes) for role, made in update.items()},
        samples=report.samples,
        metrics=[] if initialises else report.metrics,
    )
    if isinstance(leaving, outbound.Refused):
        return Withheld(leaving.reason, leaving.notes)
    if sum(len(metric.model_dump_json()) for metric in leaving.metrics) > _LONGEST_METRICS:
        return Unsound(FailureCategory.REPORT_INVALID, ("the metrics are too large for a message: use fewer bins",))
    return Allowed(
        update=update,
        samples=0 if initialises else report.samples,
        steps=0 if initialises else report.steps,
        metrics=leaving.metrics,
        seconds=_seconds(attempt),
        notes=leaving.notes,
    )


def tensors_of(layout: Layout, size: int) -> outbound.Tensors:
    """A payload as the outbound rules see it."""
    return outbound.Tensors(size, {spec.name: DTYPES[spec.dtype].name for spec in layout.tensors})


def _scan(path: Path, told: _File, expected: Layout | None) -> Scan:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(f"{path} is not a regular file")
    with _being_made_durable(path):
        scan = scan_file(path)
    verify(scan, sha256=told.sha256 or scan.sha256, bytes=told.bytes, layout=expected)
    return scan


@contextlib.contextmanager
def _being_made_durable(path: Path) -> Iterator[None]:
    """Has the disk work while the processor hashes: whoever publishes the file then finds it durable."""
    with path.open("rb") as file, ThreadPoolExecutor(1, thread_name_prefix="fsync") as aside:
        syncing = aside.submit(os.fsync, file.fileno())
        yield
        syncing.result()


def _read_regular(path: Path, most: int) -> bytes:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(f"{path} is not a regular file")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"{path} is longer than {most} bytes")
    return data


def _what_cannot_be_kept(state: Path) -> Path | None:
    """A pipe, socket or device in the private state: the next round could not be given a copy of it."""
    plain = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
    return next((p for p in state.rglob("*") if not any(is_plain(p.lstat().st_mode) for is_plain in plain)), None)


def _has_metadata(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return "__metadata__" in json.loads(file.read(length))


def _seconds(attempt: TryDirectory) -> float:
    """From start to report, by the files' times: right for a try that an earlier agent started as well."""
    began, ended = attempt.started.stat().st_mtime, (attempt.output / "report.json").stat().st_mtime
    return round(max(0.0, ended - began), 3)
