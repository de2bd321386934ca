"""The command: download, unpack, run, compare."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.certificates import make_certificates
from tests.sdk_suite.source import NotToBeHad, download, install_what_else_is_wanted, unpack
from tests.sdk_suite.verdict import Outcomes, read_known, surprises

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KNOWN = HERE / "known.toml"
SETTINGS = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
addopts = --import-mode=prepend -p sdk_suite_plugin -p no:cacheprovider --tb=short --show-capture=no
filterwarnings = ignore::DeprecationWarning
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sdk_suite", description=__doc__)
    parser.add_argument("--download", type=Path, metavar="DIR", help="keep the archive there, and look there first")
    parser.add_argument(
        "-k", dest="select", default="", metavar="EXPR", help="only these tests, as pytest selects them"
    )
    parser.add_argument("-n", dest="workers", default="2", help="processes (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=420, metavar="SECONDS", help="for one test (default: %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="work there, and leave logs and data")
    return parser.parse_args()


def run(suite: Path, scratch: Path, more: Path, options: argparse.Namespace) -> Outcomes:
    """The outcome of each test that ran."""
    (suite / "pytest.ini").write_text(SETTINGS)
    make_certificates(scratch)
    outcomes = scratch / "outcomes"
    outcomes.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE / "standin"), str(ROOT), str(more)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SDK_SUITE_FOLDER": str(scratch),
        "SDK_SUITE_OUTCOMES": str(outcomes),
        "SDK_SUITE_LIMIT": str(options.limit),
    }
    command = [sys.executable, "-m", "pytest", "-n", options.workers, "--dist", "load", "--maxschedchunk", "1"]
    subprocess.run(
        [*command, "-k", options.select, "-q", "test_queues.py", "test_queues_async.py"],
        cwd=suite,
        env=environment,
        check=False,
    )
    if not outcomes.exists():
        return {}
    lines = map(json.loads, outcomes.read_text().splitlines())
    return {test: (outcome, why) for test, outcome, why in lines}


def main() -> int:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (options.folder or Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            downloads = (options.download or scratch).resolve()
            unpack(download(downloads), scratch / "suite")
            install_what_else_is_wanted(downloads / "more")
        except NotToBeHad as error:
            print(error, file=sys.stderr)
            return 2
        outcomes = run(scratch / "suite", scratch, downloads / "more", options)
    known = read_known(KNOWN)
    for reason, tests in Counter(known[test].why for test in outcomes if test in known).most_common():
        print(f"{tests} known: {reason}")
    found = surprises(outcomes, known, whole=not options.select)
    counts = Counter(outcome for outcome, _ in outcomes.values())
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")))
    for surprise in found:
        print(f"SURPRISE: {surprise}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
