"""`python -m silo_agent`: the same as `silobus-agent`."""

from silo_agent.cli import main

if __name__ == "__main__":
    main()
