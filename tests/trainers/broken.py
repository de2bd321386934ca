"""A trainer with a mistake in it, as every script has one some day."""

import silobus

for rnd in silobus.rounds():
    raise RuntimeError(f"cannot train in round {rnd.round}")
