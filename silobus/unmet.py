"""What an experiment asks for and the script does not do, as exceptions that an agent knows by their names.

Only the names live here. An agent looks for them in the end of what a failed script printed, and tells the experiment's
operator one fixed word for each (docs/training-contract.md); what an exception says stays in the silo.
"""


class NothingShared(ValueError):
    """`nothing-shared`: the patterns of script and experiment together let no tensor of the model out."""

    __module__ = "silobus"


class NoProximalTerm(RuntimeError):
    """`no-proximal-term`: the round wants FedProx's term, and the script has none."""

    __module__ = "silobus"


class NotCorrected(RuntimeError):
    """`not-corrected`: the round wants control variates (SCAFFOLD), and not every step was corrected."""

    __module__ = "silobus"
