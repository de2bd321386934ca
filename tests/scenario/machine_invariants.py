"""What must be so whatever happened: of one stored version after another, of what silos really said, of dead letters.

Pure functions over what the world recorded. Nothing here drives anything.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from messages.experiments import FromDigest
from messages.schemas import (
    DeclineReason,
    Head,
    Payload,
    Purpose,
    RoundDeclined,
    SiloHello,
    TrainingFailed,
    UpdatePublished,
)
from orchestrator.documents import ExperimentDocument, Presence
from orchestrator.experiment.announcing import awaited
from orchestrator.experiment.state import (
    Aggregating,
    Collecting,
    Declined,
    Ended,
    Failed,
    LeftOut,
    Paused,
    RunOutcome,
    State,
    Tombstone,
    Updated,
    UpdateRecord,
)
from tests.scenario.model_silo import ModelSilo

FIRST_PAUSE = 10
LIES = {"not-finite", "layout-mismatch", "wrong-form", "wrong-purpose", "payload-missing"}
"""Reasons for dead letters of silos that do not tell the truth."""

# --- one version after another -----------------------------------------------------------------------------------


def assert_follows(before: ExperimentDocument, after: ExperimentDocument, now: datetime) -> None:
    """Whether one stored version may come after the other: what no event, however often or late, may break."""
    assert after.sequence >= before.sequence
    assert after.sequence >= max((n.sequence for n in after.outbox), default=0)
    a, b = before.state, after.state
    if run_of(a) != run_of(b):
        assert isinstance(a, Ended | Tombstone), "a live run was replaced"
        assert not isinstance(a, Tombstone) or a.refuses is not None, "a cancel that came first refused nothing"
        assert run_of(b) != a.refuses, "a run that was cancelled before its start started all the same"
        return
    assert place(a) <= place(b)
    assert_late_follows(a, b)
    match (a, b):
        case (Collecting(), Collecting()) if a.round == b.round:
            assert_answers_follow(a, b)
            assert_times_follow(a, b, now)
            assert_asked_follow(a, b)
        case (Aggregating(judging=Collecting()), Aggregating(judging=Collecting())):
            assert a.closed == b.closed
        case (Aggregating(judging=Collecting()), Aggregating()):
            assert_judged(a, b.closed.updates, b.closed.left_out)
            assert len(b.closed.updates) >= a.judging.quorum  # type: ignore[union-attr]  # the pattern says so
        case (Aggregating(judging=Collecting()), Collecting()):
            assert b.round == a.closed.round
            assert (b.announcement, b.reminded) == (a.judging.announcement + 1, a.judging.reminded + 1)  # type: ignore[union-attr]  # the same
            assert b.grace_until is None
            assert len(updates(b)) < b.quorum
        case (Collecting(), Aggregating()):
            assert b.closed.round == a.round
            assert updates(a).keys() <= {u.silo for u in b.closed.updates}
            assert {u.silo: u.payload for u in b.closed.updates}.items() >= {
                silo: update.payload for silo, update in updates(a).items()
            }.items()
            assert len(b.closed.updates) >= a.quorum
            assert_closed_in_time(a, b, now)
        case (Collecting(), Ended(outcome=RunOutcome.FAILED)):
            assert_given_up_in_time(a, b, now)
        case (Aggregating(), Aggregating()):
            assert a.closed == b.closed
        case (Aggregating(), Collecting() | Paused()):
            assert b.round == a.closed.round + 1
            assert b.run.model is not None
            assert b.run.model.round == a.closed.round
        case (Paused(), Collecting()):
            assert (b.round, b.purpose) == (a.round, a.purpose)
            assert b.run.model_copy(update={"silos": a.run.silos}) == a.run
        case _:
            pass


def assert_judged(a: Aggregating, kept: Sequence[UpdateRecord], left_out: Sequence[UpdateRecord]) -> None:
    """A verdict takes from a frozen set and adds to who was left out; nothing comes in, and no update is changed."""
    before = {u.silo: u.payload for u in a.closed.updates}
    after = {u.silo: u.payload for u in (*kept, *left_out)}
    assert after == before | {u.silo: u.payload for u in a.closed.left_out}
    assert {u.silo for u in kept} <= before.keys()
    assert {u.silo for u in a.closed.left_out} <= {u.silo for u in left_out}


def assert_answers_follow(a: Collecting, b: Collecting) -> None:
    """Nothing takes back an update, and only an update a refusal; a failure is the last word on its announcement."""
    for silo, answer in a.answers.items():
        match answer:
            case Updated() | LeftOut():
                assert b.answers[silo] == answer
            case Declined():
                assert b.answers[silo] == answer or isinstance(b.answers[silo], Updated)
            case Failed() if a.purpose is Purpose.INITIALISE or b.announcement == answer.announcement:
                assert b.answers[silo] == answer or not isinstance(b.answers[silo], Failed)
            case Failed():
                assert silo in b.answers


def assert_times_follow(a: Collecting, b: Collecting, now: datetime) -> None:
    """Nothing is announced again before its time; only a quorum out of reach brings a deadline forward, to a pause."""
    assert a.grace_until in (None, b.grace_until)
    wait = timedelta(seconds=min(86400.0, FIRST_PAUSE * 3.0 ** min(b.reminded, 100)))
    if b.announcement == a.announcement:
        assert b.deadline == a.deadline or (b.deadline < a.deadline and out_of_reach(b))
        assert b.deadline == a.deadline or b.deadline == now + wait
    elif a.purpose is Purpose.TRAIN:
        assert now >= a.deadline
    if b.purpose is Purpose.TRAIN and out_of_reach(b):
        assert b.deadline <= now + wait


def assert_asked_follow(a: Collecting, b: Collecting) -> None:
    """Who joins or leaves changes nothing about the open round; only a sample that is announced again grows."""
    assert (a.quorum, a.draw) == (b.quorum, b.draw)
    if a.announcement == b.announcement:
        assert a.asked == b.asked, "the members of an open round changed"
    assert set(a.asked) <= set(b.asked)
    if a.purpose is not Purpose.INITIALISE and a.draw is None:
        assert a.asked == b.asked, "the members of an open round changed"
    new = set(b.asked) - set(a.asked)
    assert new <= set(a.run.silos), "a silo was asked that takes part no longer"
    assert a.draw is None or len(new) <= a.draw.size - len(updates(a))


def assert_late_follows(a: State, b: State) -> None:
    """A late update is counted once, and never one that counted."""
    if isinstance(a, Tombstone) or isinstance(b, Tombstone):
        return
    for silo, before in a.run.paces.items():
        after = b.run.paces[silo]
        assert before.late <= after.late <= before.late + 1
        if after.late > before.late:
            known = max(-1 if n is None else n for n in (before.updated, before.late_for))
            assert after.late_for is not None
            assert known < after.late_for < place(b)[1] + place(b)[2]


def assert_closed_in_time(a: Collecting, b: Aggregating, now: datetime) -> None:
    """A round closes when all have answered, or the grace is over, or the deadline; the first model at once."""
    if a.purpose is Purpose.INITIALISE or a.run.request.quorum.grace == 0:
        return
    over = a.grace_until is not None and now >= a.grace_until
    silent = [silo for silo, did in b.closed.others.items() if did.startswith("had not answered")]
    assert over or now >= a.deadline or not silent


def assert_given_up_in_time(a: Collecting, b: Ended, now: datetime) -> None:
    """A run fails for want of a quorum only when no try is left, or too many have declined or left."""
    if a.purpose is Purpose.INITIALISE:
        return
    refused = sum(isinstance(answer, Declined) for answer in a.answers.values())
    left = set(a.asked) & set(a.run.silos) - set(b.run.silos)
    more = max(1, len(left))  # the answer that ended the run is not in the state before it
    others = set(a.draw.among) & set(a.run.silos) - set(a.asked) if a.draw else set()
    possible = len(a.asked) + len(others) - refused - more
    assert a.reminded >= a.run.request.quorum.reminders or possible < a.quorum
    assert now >= a.deadline or len(updates(a)) + len(awaited(a)) - more < a.quorum


def place(state: State) -> tuple[int, int, int, int]:
    """Where in its life a run is; it never goes back."""
    match state:
        case Tombstone(refuses=refuses):
            return (0, int(refuses is not None), 0, 0)
        case Collecting(round=number, announcement=announcement):
            return (1, number, 0, announcement)
        case Aggregating(judging=Collecting(announcement=announcement), closed=closed):
            return (1, closed.round, 0, announcement)
        case Aggregating(closed=closed):
            return (1, closed.round, 1, 0)
        case Paused(round=number):
            return (1, number - 1, 2, 0)
        case Ended():
            return (2, 0, 0, 0)


def run_of(state: State) -> str | None:
    """The run's id; None of a tombstone."""
    return None if isinstance(state, Tombstone) else state.run.id


def updates(state: Collecting) -> dict[str, Updated]:
    """The updates that count so far."""
    return {silo: answer for silo, answer in state.answers.items() if isinstance(answer, Updated)}


def out_of_reach(state: Collecting) -> bool:
    """Whether no quorum can come of the current announcement."""
    return len(updates(state)) + len(awaited(state)) < state.quorum


# --- what silos really said --------------------------------------------------------------------------------------


def assert_true(state: State, silos: Mapping[str, ModelSilo]) -> None:
    """Every answer in the state is one that its silo gave, and was asked for; initial weights are those asked for."""
    if isinstance(state, Tombstone):
        return
    initial = state.run.request.initial
    if isinstance(initial, FromDigest) and state.run.model is not None and state.run.model.round == 0:
        assert state.run.model.payload.sha256 == initial.sha256
    if isinstance(state, Aggregating):
        for update in state.closed.updates:
            assert_made(update.payload, silos[update.silo], state.run.id, state.closed.round)
    if not isinstance(state, Collecting):
        return
    assert state.answers.keys() <= set(state.asked)
    assert_rightly_asked(state)
    for silo, answer in state.answers.items():
        of_round = [m for m in silos[silo].said if is_of(m, state.run.id, state.round)]
        match answer:
            case Updated(payload=payload):
                assert_made(payload, silos[silo], state.run.id, state.round)
                assert any(isinstance(m, UpdatePublished) and is_honest(m, silos[silo]) for m in of_round)
            case Declined(reason=DeclineReason.TASK_NOT_OFFERED):
                assert any(isinstance(m, SiloHello) and not m.offers for m in silos[silo].said)
            case Declined(reason=DeclineReason.NOT_ENROLLED):
                pass  # no word of the silo's: it was taken out of the settings, and may be back in them
            case Declined():
                assert any(isinstance(m, RoundDeclined) for m in of_round)
            case Failed(reason="script-error", announcement=announcement):
                failures = [m for m in of_round if isinstance(m, TrainingFailed)]
                assert any((m.announcement or announcement) >= announcement for m in failures)
            case Failed():
                assert any(isinstance(m, UpdatePublished) and not is_honest(m, silos[silo]) for m in of_round)


def assert_rightly_asked(state: Collecting) -> None:
    """Those asked are in the order of the sum; a sample is the beginning of its order, which is drawn again here."""
    listed = state.run.request.silos
    for silos in (state.asked, state.run.silos):
        assert list(silos) == ([s for s in listed if s in silos] if listed else sorted(silos))
    if state.purpose is not Purpose.TRAIN or state.run.request.sample is None:
        assert state.draw is None
        return
    assert state.draw is not None
    digests = {s: hashlib.sha256(f"{state.run.seed}:{state.round}:{s}".encode()).hexdigest() for s in state.draw.among}
    order = sorted(digests, key=lambda silo: digests[silo])
    sample = state.run.request.sample
    size = min(len(order), max(sample.minimum, math.ceil(sample.share * len(order))))
    assert state.draw.size == size
    assert set(order[:size]) <= set(state.asked)
    assert state.announcement > 1 or len(state.asked) == size
    assert state.quorum == state.run.request.quorum.needed(size)


def assert_made(payload: Payload | None, silo: ModelSilo, run: str, number: int) -> None:
    """Weights that count are those that the silo truly made, by every measure."""
    honest = silo.honest.get((run, number))
    assert payload == (honest.payloads.get("weights") if honest else None)


def is_of(message: object, run: str, number: int) -> bool:
    """Whether the message is about this round."""
    return (getattr(message, "run", None), getattr(message, "round", None)) == (run, number)


def is_honest(update: UpdatePublished, silo: ModelSilo) -> bool:
    """Whether the update is what the silo truly made."""
    return silo.honest.get((update.run, update.round)) == update


# --- heads and presences -----------------------------------------------------------------------------------------


def head_order(head: Head) -> tuple[bool, int, bool, int]:
    """A head only ever moves to one that is greater."""
    return (head.phase == "ended", head.round, head.phase == "closed", head.announcement)


def assert_presence_follows(before: Presence, after: Presence) -> None:
    """What is known of a silo never goes back in time."""
    assert after.seen_at >= before.seen_at
    for run, at in before.heartbeats_at.items():
        assert after.heartbeats_at.get(run, at) >= at
    assert before.hello_at is None or (after.hello_at is not None and after.hello_at >= before.hello_at)
