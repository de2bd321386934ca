"""Where a round's script runs: `port` says what a runner is, `local` runs it as a process of this machine."""
