"""`python -m orchestrator --config FILE`."""

import sys

from orchestrator.app import main

sys.exit(main())
