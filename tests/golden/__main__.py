"""`python -m tests.golden` writes the golden files of the version in pyproject.toml, as often as it is not released;
`--release` says that it is: from then on nothing writes them any more.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tomllib

from tests.golden import live
from tests.golden.folder import ROOT, Golden, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--release", action="store_true", help="the version is released: its files stay as they are")
    options = parser.parse_args()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    golden = Golden.of(version)
    if golden.is_released:
        sys.stderr.write(f"{version} is released; its golden files stay. Raise the version in pyproject.toml first.\n")
        return 2
    if options.release:
        golden.release()
        return 0
    shutil.rmtree(golden.path, ignore_errors=True)
    write(golden)
    asyncio.run(live.write(golden.path / "live"))
    sys.stdout.write(f"Wrote {golden.path.relative_to(ROOT)}.\n")
    return 0


sys.exit(main())
