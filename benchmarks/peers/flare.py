"""NVIDIA FLARE as its proof-of-concept environment runs: a provisioned server and clients, each a process of its own.

The server and every client start a process for the job. All settings are FLARE's defaults: connections are mutual TLS,
the server writes the model to a file after each round, arrays larger than its chunks are streamed. A client asks for
its next task every 2 s; its executor, its Client API and the server's controller look every 0.5 s.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

import yaml

from benchmarks.peers.environments import INSIDE, python_of
from benchmarks.peers.flower import free_port
from benchmarks.peers.marks import WARM_UP
from benchmarks.peers.measured import Stage, measure, staged
from benchmarks.peers.table import Outcome, Point

_BUILDERS: Final[tuple[tuple[str, dict[str, object]], ...]] = (
    ("workspace.WorkspaceBuilder", {"template_file": ["master_template.yml"]}),
    ("static_file.StaticFileBuilder", {"config_folder": "config"}),
    ("cert.CertBuilder", {}),
    ("signature.SignatureBuilder", {}),
)


def run(point: Point, folder: Path, timeout: float) -> Outcome:
    """One federation, one job."""
    with staged("nvflare", folder, {"NVFLARE_POC_WORKSPACE": str(folder.absolute() / "poc")}) as stage:
        return measure(point, stage, role, lambda: _begin(stage, point), timeout)


def role(command: str) -> str | None:
    """Whose process it is: every one names the workspace of its site."""
    if "/prod_00/server" in command:
        return "server"
    site = re.search(r"/prod_00/site-(\d+)", command)
    return f"client-{site[1]}" if site else None


def _begin(stage: Stage, point: Point) -> subprocess.Popen[bytes]:
    project = stage.folder / "project.yml"
    project.write_text(yaml.safe_dump(project_of(point.silos, free_port())))
    words = (point.silos, round(point.megabytes * 1_000_000 / 4) // 8 * 8, point.rounds + WARM_UP, stage.marks, project)
    return stage.start("job", [str(python_of("nvflare")), str(INSIDE / "flare_job.py"), *map(str, words)])


def project_of(silos: int, port: int) -> dict[str, object]:
    """What is provisioned: one server, the silos, one administrator."""
    sites = [{"name": f"site-{number + 1}", "type": "client", "org": "bench"} for number in range(silos)]
    server = {"name": "server", "type": "server", "org": "bench", "default_host": "localhost", "fed_learn_port": port}
    admin = {"name": "admin@nvidia.com", "type": "admin", "org": "bench", "role": "project_admin"}
    return {
        "api_version": 3,
        "name": "bench",
        "participants": [server, admin, *sites],
        "builders": [{"path": f"nvflare.lighter.impl.{name}", "args": args} for name, args in _BUILDERS],
    }
