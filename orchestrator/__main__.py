"""`python -m orchestrator --config FILE`."""

import sys

try:  # most of its first moments go into this, and Ctrl-C may come then as well
    from orchestrator.app import main

    status = main()
except KeyboardInterrupt:
    sys.stderr.write("Stopped.\n")
    status = 130
sys.exit(status)
