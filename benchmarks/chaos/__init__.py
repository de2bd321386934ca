"""Rounds survive anything: a federation of real processes in which everything goes wrong for minutes, then a verdict.

    python -m benchmarks.chaos --minutes 5 --seed 1 --json

`plan` says what goes wrong when (from the seed), `director` does it to `stage`'s processes, `load` has many experiments
trained meanwhile, `judge` looks at what came of them. What is done, and how, is in docs/testing.md.
"""
