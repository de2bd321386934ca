"""A trainer that tries to get a secret out, in the way its hyperparameter `leak` names.

It is in the environment (CANARY), the paths of data and of this script, and in everything below.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

import silobus

CANARY = os.environ["CANARY"]

print(f"this is {CANARY}, {sys.argv} in {os.getcwd()} with {dict(os.environ)}")
print(f"error {CANARY}", file=sys.stderr, flush=True)

model = {"layer.weight": np.zeros((4, 3), np.float32), "layer.bias": np.zeros(3, np.float32)}
if "private" in os.environ.get("SILO_MODEL", ""):
    model[f"{CANARY}.private"] = np.zeros(2, np.float32)


class Leak(Exception):
    pass


def written(name: str) -> Path:
    return Path(os.environ["SILOBUS_OUTPUT"]) / name


def change_report(**changes: object) -> None:
    report = json.loads(written("report.json").read_text())
    written("report.json").write_text(json.dumps(report | changes))


def put_into_header(name: str, value: object) -> None:
    """Rewrites the update with one more entry in its header, and the report to match."""
    import hashlib

    data = written("update.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]) | {name: value}).encode()
    data = len(header).to_bytes(8, "little") + header + data[8 + length :]
    written("update.safetensors").write_bytes(data)
    change_report(update={"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})


for rnd in silobus.rounds():
    leak = rnd.params.get("leak")
    rnd.load(model, share=["*"] if leak == "tensor" else ["*", f"!{CANARY}*"])
    rnd.keep("memory", {"what": CANARY})
    if rnd.evaluates:
        rnd.score(level=silobus.mean(1, 1), **{CANARY: silobus.mean(1, 64)})
    if rnd.trains:
        rnd.progress(1)
        if leak == "exception":
            raise Leak(f"could not open /data/{CANARY}/patients.csv")
        if leak == "memory":
            raise MemoryError(f"out of memory while reading {CANARY}")
        if leak == "exit":
            sys.exit(f"giving up because of {CANARY}")
        if leak == "tensor":
            rnd.submit({**model, CANARY: np.zeros(1, np.float32)}, samples=64, steps=1)
        else:
            rnd.submit(model, samples=64, steps=1)

if rnd.trains:  # after the loop: the report is there, and is replaced
    if leak == "report-field":
        change_report(note=CANARY, samples=64)
    if leak == "report-value":
        change_report(samples=CANARY)
    if leak == "metric-text":
        change_report(metrics=[{"name": f"not a name {CANARY}", "phase": "trained", "kind": CANARY, "count": 1}])
    if leak == "header":
        put_into_header("__metadata__", {"note": CANARY})
    if leak == "tensor-in-header":
        put_into_header(CANARY, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    if leak == "no-report":
        written("report.json").rename(written(CANARY))
    if leak == "state":
        (written("state") / CANARY).write_text(CANARY)
    if leak == "depth":
        os.chdir(written("state"))
        for _ in range(20):  # longer than any path may be
            os.mkdir(f"{CANARY}{'x' * 200}")
            os.chdir(f"{CANARY}{'x' * 200}")
    print(f"leaked by {leak}: {CANARY}")
