"""What strategies are worth: FedAvg, FedProx, SCAFFOLD and FedAdam on digits that ten silos hardly share.

    python -m benchmarks.quality                    the table, in a few minutes
    python -m benchmarks.quality --json             everything: each seed's curve, and all that was tried in tuning
    python -m benchmarks.quality --write-docs       docs/quality.md and its plots
    python -m benchmarks.quality --check            two rounds of real federations: the same models?

Nothing here has queues or processes: thousands of rounds have to run in minutes. Aggregation is the product's own
(`orchestrator.aggregation`, on arrays), as is the drawing of samples; the silos' steps are the formulas of
`silobus.drift` in numpy, all silos at once (`clients`). `train` is the same silo as a training script that uses
`silobus`: the tests and `--check` hold both together.
"""
