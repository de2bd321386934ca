"""The life of a round, as a table: in this phase, when this happens, that is next."""

import pytest

from messages.schemas import DeclineReason, FailureCategory
from silo_agent.policy import Accepted, Declined
from silo_agent.rounds import (
    Announced,
    Checked,
    Checking,
    Closed,
    Deciding,
    Event,
    Failed,
    Fetching,
    LookedUp,
    Phase,
    PublicationMade,
    PublicationSent,
    Published,
    Publishing,
    Resending,
    ResultAllowed,
    RoundIsClosed,
    Training,
    Tries,
    TryFailed,
    TryFinished,
    TurnCame,
    Waiting,
    WeightsFetched,
    step,
)
from tests.unit.agent.making import task

YES = Accepted(task=task(tries=2), hyperparameters={}, charged=True)
NO = Declined(DeclineReason.TASK_NOT_OFFERED)
FIRST, SECOND = Tries(1), Tries(2, (FailureCategory.KILLED,))
KILLED = TryFailed(FailureCategory.KILLED)


@pytest.mark.parametrize(
    ("phase", "event", "after"),
    [
        (Announced(), LookedUp(wanted=True, published=False), Deciding()),
        (Announced(), LookedUp(wanted=False, published=False), Closed()),
        (Announced(), LookedUp(wanted=True, published=True), Resending()),
        # What was published is committed and said even when nobody waits any more: somebody may have missed it.
        (Announced(), LookedUp(wanted=False, published=True), Resending()),
        (Deciding(), YES, Waiting(YES)),
        (Deciding(), NO, NO),
        (Waiting(YES), TurnCame(FIRST), Fetching(YES, FIRST)),
        (Waiting(YES), TurnCame(SECOND), Fetching(YES, SECOND)),
        (Waiting(YES), TurnCame(Tries(3, (FailureCategory.KILLED,) * 2)), Failed(FailureCategory.KILLED, 2)),
        (
            Waiting(YES),
            TurnCame(Tries(2, (FailureCategory.DATA_MISSING,))),
            Failed(FailureCategory.DATA_MISSING, 1),
        ),
        (Fetching(YES, FIRST), WeightsFetched(), Training(YES, FIRST)),
        (Fetching(YES, FIRST), WeightsFetched(finished=True), Checking(YES, FIRST)),
        (
            Fetching(YES, FIRST),
            Declined(DeclineReason.WEIGHTS_INVALID),
            Declined(DeclineReason.WEIGHTS_INVALID),
        ),
        (Training(YES, FIRST), TryFinished(), Checking(YES, FIRST)),
        (Training(YES, FIRST), KILLED, Training(YES, SECOND)),
        (Training(YES, SECOND), KILLED, Failed(FailureCategory.KILLED, 2)),
        (
            Training(YES, FIRST),
            TryFailed(FailureCategory.DATA_MISSING),
            Failed(FailureCategory.DATA_MISSING, 1),
        ),
        (Checking(YES, FIRST), KILLED, Training(YES, SECOND)),
        (Checking(YES, SECOND), KILLED, Failed(FailureCategory.KILLED, 2)),
        (Checking(YES, SECOND), ResultAllowed(), Checked(YES, 2)),
        (Checked(YES, 2), LookedUp(wanted=True, published=False), Publishing(YES, 2)),
        (Checked(YES, 2), LookedUp(wanted=False, published=False), Closed()),
        (Checked(YES, 2), LookedUp(wanted=True, published=True), Resending()),
        (Publishing(YES, 2), PublicationMade(), Resending()),
        (Resending(), PublicationSent(), Published()),
    ],
)
def test_step(phase: Phase, event: Event, after: Phase) -> None:
    assert step(phase, event) == after


@pytest.mark.parametrize(
    "phase",
    [
        Announced(),
        Deciding(),
        Waiting(YES),
        Fetching(YES, FIRST),
        Training(YES, FIRST),
        Checking(YES, FIRST),
        Checked(YES, 1),
    ],
)
def test_a_closed_round_is_given_up_at_once(phase: Phase) -> None:
    assert step(phase, RoundIsClosed()) == Closed()


@pytest.mark.parametrize("phase", [Publishing(YES, 1), Resending(), Published(), NO])
def test_what_is_half_published_or_over_is_not_given_up(phase: Phase) -> None:
    assert step(phase, RoundIsClosed()) == phase


@pytest.mark.parametrize(
    ("phase", "event"),
    [
        (Announced(), TryFinished()),
        (Training(YES, FIRST), LookedUp(wanted=True, published=False)),
        (Published(), PublicationMade()),
        (Deciding(), KILLED),
    ],
)
def test_what_cannot_happen_is_our_bug(phase: Phase, event: Event) -> None:
    with pytest.raises(ValueError, match="cannot happen"):
        step(phase, event)
