"""Whether what would run is the code that the owner approved: measured where it lies, or vouched for by its image.

Here lives only which of the two it is. How a digest is computed is `code_digest`'s; what follows from one, `policy`'s.
Blocks: use it in a thread.
"""

from __future__ import annotations

from silo_agent import code_digest
from silo_agent.policy import Code


def measured(code: Code) -> str | None:
    """The digest of the code as it is now; None when there is none. An image named by its digest cannot be another."""
    return code.sha256 if code.path is None else code_digest.measured(code.path)


def cleared(code: Code) -> str | None:
    """The digest of what will run, after compiled files beside it were removed."""
    return code.sha256 if code.path is None else code_digest.cleared(code.path)
