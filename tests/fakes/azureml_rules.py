"""What Azure would say of a job before it takes it: azure-ai-ml's own generated models, and the rules of the published
REST reference (Microsoft.MachineLearningServices/workspaces/jobs, Create Or Update).

Here live checks alone. Each gives a sentence for the 400 that a request gets; nothing is run here. azure-ai-ml takes
two seconds to import, so that is done by whoever asks, and not by everyone who collects tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from azure.ai.ml._restclient.arm_ml_service.models import CommandJob

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}")
DATASTORE = re.compile(r"azureml://datastores/(\w+)/paths/(\S+?)/?")
PROVIDER = "providers/Microsoft.MachineLearningServices"
DURATION = re.compile(r"PT(?=\d)(\d+H)?(\d+M)?(\d+S)?|P\d+D(T(\d+H)?(\d+M)?(\d+S)?)?")
BINDING = re.compile(r"\$\{\{(inputs|outputs)\.(\w+)\}\}")


def faults(name: str, body: Mapping[str, Any], datastores: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a PUT of a command job; nothing, if it would be taken."""
    from azure.ai.ml._restclient.arm_ml_service.models import CommandJob, CommandJobLimits, JobBase, PyTorch

    if not NAME.fullmatch(name):
        yield f"{name!r} is no name for a job"
    if set(body) - {"properties", "name"}:
        yield f"unknown fields {sorted(set(body) - {'properties', 'name'})}"
    job = JobBase._deserialize(dict(body), []).properties
    if not isinstance(job, CommandJob):
        yield f"jobType {body['properties'].get('jobType')!r} is no command"
        return
    yield from _unknown(job, "properties")
    if not re.search(r"[a-zA-Z0-9_]", job.command or ""):
        yield "command is required"
    if not job.environment_id:
        yield "environmentId is required"
    if not job.limits or not isinstance(job.limits, CommandJobLimits):
        yield "limits are not those of a command"
    elif not DURATION.fullmatch(str(body["properties"]["limits"].get("timeout"))):
        yield "limits.timeout is no ISO 8601 duration"
    if job.distribution is not None and not isinstance(job.distribution, PyTorch):
        yield "distributionType is not PyTorch"
    if job.resources is None or not isinstance(job.resources.instance_count, int) or job.resources.instance_count < 1:
        yield "resources.instanceCount is at least 1"
    for key, value in (body["properties"].get("environmentVariables") or {}).items():
        if not isinstance(value, str):
            yield f"environmentVariables.{key} is no text"
    yield from _ports(job, datastores)


def _ports(job: CommandJob, datastores: Mapping[str, Any]) -> Iterator[str]:
    from azure.ai.ml._restclient.arm_ml_service.models import (
        InputDeliveryMode,
        JobInputType,
        JobOutputType,
        OutputDeliveryMode,
    )

    inputs, outputs = job.inputs or {}, job.outputs or {}
    for key, one in inputs.items():
        if one.get("jobInputType") not in [kind.value for kind in JobInputType]:
            yield f"inputs.{key}.jobInputType {one.get('jobInputType')!r} is unknown"
        if one.get("mode") not in [mode.value for mode in InputDeliveryMode]:
            yield f"inputs.{key}.mode {one.get('mode')!r} is unknown"
    for key, one in outputs.items():
        if one.get("jobOutputType") not in [kind.value for kind in JobOutputType]:
            yield f"outputs.{key}.jobOutputType {one.get('jobOutputType')!r} is unknown"
        if one.get("mode") not in [mode.value for mode in OutputDeliveryMode]:
            yield f"outputs.{key}.mode {one.get('mode')!r} is unknown"
    for key, one in {**inputs, **outputs}.items():
        uri = str(one.get("uri"))
        found = DATASTORE.fullmatch(uri)
        if found and found[1] not in datastores:
            yield f"{key}: there is no datastore {found[1]}"
        if not found and not re.fullmatch(rf"/subscriptions/[^/]+/resourceGroups/[^/]+/{PROVIDER}/\S+", uri):
            yield f"{key}: {uri} is neither a path on a datastore nor the id of an asset"
    for side, key in BINDING.findall(job.command):
        if key not in (inputs if side == "inputs" else outputs):
            yield f"command: there is no {side}.{key}"


def _unknown(model: Any, where: str) -> Iterator[str]:
    """Fields that the generated model has not, or that are not for writing; and values of closed lists."""
    fields = {field._rest_name: (name, field) for name, field in model._attr_to_rest_field.items()}
    for key in model:
        if key not in fields:
            yield f"{where}.{key} is unknown"
            continue
        name, field = fields[key]
        if field._visibility == ["read"]:
            yield f"{where}.{key} is read-only"
        value = getattr(model, name)
        below = value.values() if isinstance(value, dict) else [value]
        for one in below:
            if hasattr(one, "_attr_to_rest_field"):
                yield from _unknown(one, f"{where}.{key}")
            elif isinstance(one, Enum) and one.value not in [known.value for known in type(one)]:
                yield f"{where}.{key} {one!r} is unknown"
