"""Who takes part: the members of a run, whom of them a round asks, and how many updates make a quorum of those.

Members change between rounds only: an open round asks those it was opened with. One of them that leaves has thereby
answered it (`collecting`), and one that joins waits for the next.

A sample is drawn without a random generator, so that anybody can draw it again: a round asks the first `size` of its
members in the order of SHA-256 over `<seed>:<round>:<silo>` (in UTF-8, compared as hex). Client sampling is McMahan et
al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017 (arXiv:1602.05629),
Algorithm 1: each round asks max(C · K, 1) of K clients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from messages.errors import Poison
from messages.experiments import StartExperiment
from messages.schemas import DeclineReason, Purpose
from orchestrator.experiment.events import MembersSeen, StartRequested
from orchestrator.experiment.state import Collecting, Declined, Draw, LeftOut, Run, Updated


def members_at_start(event: StartRequested) -> tuple[str, ...]:
    """Who takes part in the beginning. Raises Poison when no round of theirs could ever have a quorum."""
    request = event.request
    listed = request.silos if request.silos is not None else sorted(set(event.offering) & set(event.enrolled))
    if strangers := sorted({*listed, *request.overrides} - set(event.enrolled)):
        raise Poison("unknown-silos", f"Not enrolled in this federation: {', '.join(strangers[:20])}.")
    if not set(listed) & set(event.offering):
        raise Poison(
            "task-not-offered",
            f"No silo offers the task {request.task}. Agents say what they offer when they start: look whether they "
            "run, and whether their policies name this task.",
        )
    if request.sample is not None and request.sample.minimum > len(listed):
        raise Poison(
            "sample-too-large",
            f"A round is to ask at least {request.sample.minimum} silos, but only {len(listed)} take part.",
        )
    asked = request.asked(len(listed))
    if (needed := request.quorum.needed(asked)) > asked:
        which = "take part" if request.sample is None else "are asked in each round"
        raise Poison("quorum-too-large", f"The quorum is {needed} updates, but only {asked} silos {which}.")
    if needed < event.least:
        raise too_small_for_strategy(request, needed, event.least)
    if why := request.shares_nothing():
        raise Poison("nothing-shared", why)
    if why := request.too_few_to_check(needed):
        raise Poison("quorum-too-small", f"checks: {why}")
    return tuple(listed)


def too_small_for_strategy(request: StartExperiment, needed: int, least: int) -> Poison:
    """The error for a quorum of `needed` updates, of which the strategy needs `least`."""
    return Poison(
        "quorum-too-small-for-strategy",
        f"Strategy {request.strategy.name} with these options needs {least} updates, and a quorum of {needed} would "
        f"close a round. Set quorum.minimum to {least} or more, of as many silos.",
    )


def members_after(run: Run, event: MembersSeen) -> tuple[str, ...]:
    """Who takes part in the rounds that open from now on, in the order in which updates are summed."""
    enrolled = set(run.silos) | event.offers.keys() if event.enrolled is None else set(event.enrolled)
    if run.request.silos is not None:
        return run.silos if event.enrolled is None else tuple(s for s in run.request.silos if s in enrolled)
    offering = {silo for silo, tasks in event.offers.items() if run.request.task in tasks}
    return in_order(run.request, ((set(run.silos) - event.offers.keys()) | offering) & enrolled)


def left(state: Collecting, event: MembersSeen) -> list[tuple[str, Declined]]:
    """What it means for the open round that silos it asked are members no longer: for those, an answer."""
    found = []
    for silo in state.asked:
        if silo in state.run.silos or isinstance(state.answers.get(silo), Updated | LeftOut | Declined):
            continue
        enrolled = event.enrolled is None or silo in event.enrolled
        reason = DeclineReason.TASK_NOT_OFFERED if enrolled else DeclineReason.NOT_ENROLLED
        found.append((silo, Declined(reason=reason)))
    return found


def in_order(request: StartExperiment, silos: Iterable[str]) -> tuple[str, ...]:
    """`silos` in the order in which updates are summed: that of the request's list, or of the names."""
    if request.silos is None:
        return tuple(sorted(silos))
    place = {silo: number for number, silo in enumerate(request.silos)}
    return tuple(sorted(silos, key=lambda silo: place[silo]))


def seed_of(run: str, request: StartExperiment) -> int | None:
    """The seed of a run's samples, which are drawn by it alone; None when nothing is drawn."""
    if request.sample is None:
        return None
    if request.sample.seed is not None:
        return request.sample.seed
    return int(hashlib.sha256(run.encode()).hexdigest()[:8], 16)


def draw(run: Run, purpose: Purpose) -> Draw | None:
    """What this round's sample is drawn from; None when it asks everybody."""
    if run.request.sample is None or run.seed is None or purpose is not Purpose.TRAIN:
        return None
    return Draw(seed=run.seed, size=run.request.asked(len(run.silos)), among=run.silos)


def drawing_order(seed: int, round_number: int, silos: Iterable[str]) -> list[str]:
    """The order in which a round asks: the sample is its beginning, those who are asked in their stead come next."""
    return sorted(silos, key=lambda silo: hashlib.sha256(f"{seed}:{round_number}:{silo}".encode()).hexdigest())


def first_asked(run: Run, round_number: int, purpose: Purpose, drawn: Draw | None) -> tuple[str, ...]:
    """Whom a round asks when it opens. The first model is made by one silo: the first that will."""
    if purpose is Purpose.INITIALISE:
        return run.silos[:1]
    if drawn is None:
        return run.silos
    return in_order(run.request, drawing_order(drawn.seed, round_number, drawn.among)[: drawn.size])


def asked_next(state: Collecting) -> tuple[str, ...]:
    """Whom a sampled round asks besides when it is announced again: one for each update it is short of its size.

    A silo that is silent may be down for days, so it is replaced like those that declined or failed; should it (or one
    that failed) answer after all, that counts.
    """
    if state.draw is None:
        return ()
    short = state.draw.size - sum(isinstance(answer, Updated) for answer in state.answers.values())
    order = drawing_order(state.draw.seed, state.round, state.draw.among)
    return tuple(silo for silo in order if silo not in state.asked and silo in state.run.silos)[:short]


def quorum_of(run: Run, asked: int, purpose: Purpose) -> int:
    """Updates that close a round that asks so many silos; when it trains, enough to be checked and for the strategy,
    however many members have left."""
    needed = run.request.quorum.needed(asked)
    match purpose:
        case Purpose.INITIALISE:
            return 1
        case Purpose.TRAIN:
            checks = run.request.checks
            return max(needed, run.least, checks.least if checks is not None else 1)
        case Purpose.EVALUATE:
            return needed


def shortage(run: Run, purpose: Purpose) -> str | None:
    """Why no round can have a quorum of the silos that are left; None when it can. The last round needs none."""
    asked = run.request.asked(len(run.silos)) if purpose is Purpose.TRAIN else len(run.silos)
    needed = 1 if purpose is Purpose.EVALUATE else quorum_of(run, asked, purpose)
    if max(1, needed) <= asked:
        return None
    who = f"{len(run.silos)} silo{'s' if len(run.silos) != 1 else ''} ({', '.join(run.silos[:20]) or 'none'})"
    return f"A round needs {max(1, needed)} updates, and of {who} that still take part it would ask {asked}."
