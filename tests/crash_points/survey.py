"""All points of a shape, all pairs of them, or a share; each tried in a run of its own, in several processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import multiprocessing
import random
import selectors
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.crash_points.calls import ROOT, WRITES, files_counted
from tests.crash_points.federation import Federation
from tests.crash_points.outcome import Outcome, outcome_of
from tests.crash_points.points import ANY, Kind, Plan, Point
from tests.crash_points.shapes import SHAPES

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Tried:
    """One run."""

    shape: str
    points: tuple[Point, ...]
    outcome: Outcome
    plan: Plan

    @property
    def name(self) -> str:
        """How it is asked for."""
        return "+".join(map(str, self.points))


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one run, next to the undisturbed one."""

    shape: str
    points: str
    at: str
    """The calls at which something went wrong."""
    differences: list[str]
    calls_after: int
    """Calls of all processes since the first point: so many pairs begin with it."""

    @property
    def again(self) -> str:
        """The command that runs just this."""
        return f"python -m tests.crash_points --shape {self.shape} --point '{self.points}'"


@dataclass(frozen=True, slots=True)
class Points:
    """Every point of a shape."""

    run: list[Point]
    """Those that differ from each other."""
    same: int
    """Deaths after an answer whose next call is a point as well: dying before it is the very same run."""

    @property
    def count(self) -> int:
        """All of them."""
        return len(self.run) + self.same


@dataclass(frozen=True, slots=True)
class Part:
    """One of so many parts, together everything, each the same whenever it is asked for: `2/5`."""

    number: int
    parts: int

    def of(self, everything: list[T]) -> list[T]:
        """Those of this part."""
        return everything[self.number - 1 :: self.parts]

    @classmethod
    def parse(cls, text: str) -> Part:
        """Raises ValueError."""
        number, parts = map(int, text.split("/"))
        if not 1 <= number <= parts:
            raise ValueError(text)
        return cls(number, parts)


WHOLE: Final = Part(1, 1)


def points_of(undisturbed: Plan) -> Points:
    """What can go wrong at every call of a run."""
    run, same = [], 0
    for who, calls in undisturbed.made.items():
        for number, call in enumerate(calls, 1):
            kinds = [Kind.BEFORE]
            if call.answered:
                kinds.append(Kind.UNANSWERED)
                if call.followed_by is None:
                    kinds.append(Kind.AFTER)
                else:
                    same += 1
            if not call.away and call.answered and call.what.split()[0] in WRITES:
                kinds.append(Kind.TORN)
            if call.away:
                kinds += [Kind.REFUSE, Kind.LOSE, Kind.FREEZE] if call.answered else [Kind.REFUSE, Kind.FREEZE]
            run += [Point(who, number, kind) for kind in kinds]
    return Points(run, same)


def singles(
    shape: str, count: int | None = None, who: str | None = None, part: Part = WHOLE
) -> list[tuple[Point, ...]]:
    """Every point, or those of one process, or a part; or so many of them, spread evenly over all."""
    points = [(point,) for point in points_of(undisturbed(shape).plan).run if who in (None, point.who)]
    points = part.of(points)
    if count is None or count >= len(points):
        return points
    return [points[index * len(points) // count] for index in range(count)]


def firsts(shape: str) -> list[Point]:
    """What a pair begins with: a death before each call, after half of each write, and each answer lost, and each call
    that its process comes to only when its locks are gone.

    A death once a call was made is one before the process's next, and a refusal is told as a lost answer is.
    """
    kinds = {Kind.BEFORE, Kind.TORN, Kind.LOSE, Kind.FREEZE}
    return [point for point in points_of(undisturbed(shape).plan).run if point.kind in kinds]


@functools.cache
def undisturbed(shape: str) -> Tried:
    """The run in which nothing goes wrong."""
    return tried(shape)


def examined(shape: str, points: Sequence[Point]) -> Finding:
    """Runs a shape with these points, and compares with the undisturbed run; with none, that with arithmetic."""
    reference = undisturbed(shape)
    if not points:
        return Finding(shape, "", "no call", reference.outcome.wrong(SHAPES[shape]), 0)
    it = tried(shape, points)
    differences = it.outcome.differences(reference.outcome)
    if len(it.plan.fired) < len(points):
        differences.append(f"never came to {points[len(it.plan.fired)]}")
    elif (first := points[0]).who != ANY:
        before = [[call.what for call in t.plan.made[first.who][: first.call]] for t in (it, reference)]
        if before[0] != before[1]:
            differences.append("the calls before the point are not those of the undisturbed run")
    return Finding(shape, it.name, "; ".join(it.plan.at), differences, it.plan.since_first or 0)


def pairs_from(shape: str, first: Point, share: float = 1.0, seed: int = 0) -> list[Finding]:
    """`first` alone, and with a death before each call (or a share) that any process makes from then on."""
    alone = examined(shape, (first,))
    chosen = range(1, alone.calls_after + 1)
    if share < 1.0:
        generator = random.Random(f"{seed} {first}")
        chosen = [number for number in chosen if generator.random() < share]
    return [alone, *(examined(shape, (first, Point(ANY, number, Kind.BEFORE))) for number in chosen)]


def each_single(shape: str, jobs: int, count: int | None, who: str | None, part: Part = WHOLE) -> Iterator[Finding]:
    """What came of every point, or of those of `singles`."""
    yield examined(shape, ())
    yield from _spread(functools.partial(examined, shape), singles(shape, count, who, part), jobs)


def each_pair(shape: str, jobs: int, share: float, seed: int, part: Part = WHOLE) -> Iterator[Finding]:
    """What came of every pair, or of a share of them; or of a part: of those that begin with some of the points."""
    yield examined(shape, ())
    of = functools.partial(pairs_from, shape, share=share, seed=seed)
    yield from itertools.chain.from_iterable(_spread(of, part.of(firsts(shape)), jobs))


def share_of_pairs(shape: str, count: int, seed: int) -> list[Finding]:
    """What came of so many pairs, drawn at random."""
    generator, found = random.Random(seed), []
    for first in generator.choices(firsts(shape), k=count):
        calls = tried(shape, (first,)).plan.since_first or 0
        if calls:
            found.append(examined(shape, (first, Point(ANY, generator.randint(1, calls), Kind.BEFORE))))
    return found


def _spread(do: Callable[[T], R], what: Sequence[T], jobs: int) -> Iterator[R]:
    """In several processes, which know the undisturbed run already."""
    if jobs == 1:
        yield from map(do, what)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(do, what, chunksize=4)


def tried(shape: str, points: Sequence[Point] = ()) -> Tried:
    """Runs a shape with these points."""
    plan = Plan(tuple(points))
    random.seed(0)  # jitter
    alone = asyncio.Runner(loop_factory=_Loop)
    with _directory() as root, _errors_logged() as bugs, files_counted(), alone as runner:
        outcome = runner.run(_run(shape, plan, root, bugs))
    return Tried(shape, tuple(points), outcome, plan)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that asks the operating system for nothing as long as there is something to do.

    What is meant for threads is done at once, so that each run is the same.
    """

    def __init__(self) -> None:
        super().__init__(_Selector())

    def run_in_executor(self, executor: Any, func: Callable[..., R], *args: Any) -> asyncio.Future[R]:  # type: ignore[override]
        """Runs it here and now."""
        future: asyncio.Future[R] = self.create_future()
        try:
            future.set_result(func(*args))
        except BaseException as error:  # noqa: BLE001  # handed on to whoever waits for the future
            future.set_exception(error)
        return future


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return [] if timeout is not None and timeout <= 0 else super().select(timeout)


async def _run(shape: str, plan: Plan, root: Path, bugs: list[str]) -> Outcome:
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    federation = Federation(SHAPES[shape], plan, root)
    problem = None
    try:
        await federation.to_the_end()
    except (TimeoutError, RuntimeError) as error:
        problem = f"{error}; {federation.left()}"
    await federation.end()
    return outcome_of(federation, problem, bugs)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    in_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as name:
        root = Path(name, ROOT)
        root.mkdir()
        yield root


class _Remembering(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        what = repr(record.exc_info[1]) if record.exc_info else ""
        self.seen.append(f"{record.getMessage()} {getattr(record, 'silobus_fields', '')} {what}")


@contextlib.contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """What our code logs as an error: nothing may be, whatever dies."""
    handler, loggers = _Remembering(), [logging.getLogger(n) for n in ("messages", "orchestrator", "silo_agent")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR)
    try:
        yield handler.seen
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
