"""How long a round takes when training takes no time, what it moves, and the least it could take on this machine.

    python -m benchmarks.rounds --silos 3 --megabytes 1 64 --rounds 10 --json

`measure` runs it on real processes, `floor` says what the machine could do at best, `counters` what processes used.
"""

from benchmarks.rounds.counters import peak_mib
from benchmarks.rounds.measure import Asked, measure

__all__ = ["Asked", "measure", "peak_mib"]
