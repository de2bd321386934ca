"""What a person is told."""

from __future__ import annotations

from messages import names
from tests.unit.deploy.azure import SILOS, federation

SAID = {
    "DeadletteredMessages": ("GreaterThan", 0),
    "ActiveMessages": ("GreaterThan", 0),
    "CompleteMessage": ("LessThanOrEqual", 0),
    "IncomingMessages": ("LessThanOrEqual", 0),
}


def test_somebody_is_told_of_dead_letters_old_messages_and_silence() -> None:
    alerts = federation("open").of("Microsoft.Insights/metricAlerts")
    watched: dict[str, set[str]] = {"DeadletteredMessages": set(), "CompleteMessage": set(), "IncomingMessages": set()}
    for alert in alerts:
        assert alert["properties.enabled"] is True
        assert alert["properties.actions"]
        criteria = alert["properties.criteria"]["allOf"]
        for criterion in criteria:
            assert (criterion["operator"], criterion["threshold"]) == SAID[criterion["metricName"]]
            [dimension] = criterion["dimensions"]
            watched.setdefault(criterion["metricName"], set()).update(dimension["values"])
    assert watched["DeadletteredMessages"] == {"*"}
    assert watched["CompleteMessage"] == set(names.queues(SILOS))
    assert watched["IncomingMessages"] == {names.from_silo(silo) for silo in SILOS}
