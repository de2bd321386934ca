"""Anything, in any order: Hypothesis drives the real orchestrators through faults no one would think of.

The bus delivers twice, late, out of order, and drops what it takes for a duplicate; locks lapse; calls are refused or
their answers get lost; processes die between any two calls; queues are lost; silos lie, and speak without being asked.
After every step the whole history of stored states must make sense, and once the faults stop every run must come to
its end, with exactly the right weights. `python -m tests.guards` removes each guard and sees these machines fail.

The examples are the same each time. SILOBUS_EXAMPLES=1000 looks at so many others; SILOBUS_SHRINK=0 stops at the first
that fails, as it is.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

from tests.scenario.machine_answers import Answers
from tests.scenario.machine_members import Members
from tests.scenario.machine_names import Names
from tests.scenario.machine_rounds import Rounds

EXAMPLES = int(os.environ.get("SILOBUS_EXAMPLES", "0"))
SHRINK = os.environ.get("SILOBUS_SHRINK", "1") != "0"


def examined(examples: int, *, steps: int) -> settings:
    """The same examples each time, unless others are asked for."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, *([Phase.shrink] if SHRINK else [])],
    )


TestRounds = Rounds.TestCase
TestRounds.settings = examined(80, steps=40)

TestNames = Names.TestCase
TestNames.settings = examined(40, steps=20)

TestAnswers = Answers.TestCase
TestAnswers.settings = examined(80, steps=20)

TestMembers = Members.TestCase
TestMembers.settings = examined(12, steps=12)
