"""The life of an experiment, as a pure function: `step(state, event, now) -> (state, effects)`.

CORE. What may happen (`events`), what is so (`state`), what is to be done (`effects`), and nothing that does it: no
I/O, no clock, no randomness, no transport.
"""
