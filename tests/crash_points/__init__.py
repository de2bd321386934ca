"""Every crash point of a small run: each call that leaves a process is a place to die at, or to go wrong.

    points      what goes wrong at which call, and the counting of calls
    calls       bus, store and files of one process, as counted calls
    trainer     a runner that trains in no time and counts its commits in the silo's private state
    federation  real orchestrators and real agents in one event loop, started again whenever one has died
    outcome     what a run has come to: the same whatever went wrong
    survey      all points, all pairs of points, a share of them; in several processes

`python -m tests.crash_points` tries every point; `tests/scenario/test_crash_points.py` a share of them.
"""
