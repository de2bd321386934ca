"""What rounds cost an orchestrator: the real step and the real shell, silos that only pretend, hours in seconds."""
