"""How long a round takes when training takes no time, what it moves, and the least it could take on this machine.

    python -m benchmarks.rounds --silos 3 --megabytes 1 64 --rounds 10 --json

`measure` runs it on real processes, `floor` says what the machine could do at best, `counters` what processes used.
"""

from benchmarks.rounds.counters import descendants, peak_mib
from benchmarks.rounds.measure import WARM_UP, Asked, check, measure, round_times

__all__ = ["WARM_UP", "Asked", "check", "descendants", "measure", "peak_mib", "round_times"]
