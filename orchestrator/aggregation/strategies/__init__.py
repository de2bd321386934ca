"""The strategies that come with Silobus, each with its citation. `orchestrator.aggregation.named` has their names."""
