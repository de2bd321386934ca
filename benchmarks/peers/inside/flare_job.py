"""Prepares NVIDIA FLARE's proof-of-concept workspace, starts its server and clients, and submits one job.

python flare_job.py SILOS FLOATS ROUNDS MARKS PROJECT.yml
"""

# mypy: ignore-errors
# NVIDIA FLARE is not installed where types are checked.

import sys
from pathlib import Path

from flare_parts import NotedFedAvg
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner
from nvflare.recipe.poc_env import PocEnv

silos, floats, rounds = map(int, sys.argv[1:4])
here = Path(__file__).resolve().parent
job = FedJob(name="noop", min_clients=silos)
job.to_server(NotedFedAvg(num_clients=silos, num_rounds=rounds, floats=floats, marks=sys.argv[4]))
# The documented way to write a client: a script with the Client API, in the client's job process.
job.to_clients(ScriptRunner(script=str(here / "flare_client.py"), framework=FrameworkType.NUMPY))
environment = PocEnv(num_clients=silos, project_conf_path=sys.argv[5], extra={"login_timeout": 60})
print("submitted", environment.deploy(job))
