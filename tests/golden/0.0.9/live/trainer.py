"""The training script of the golden federation, by the directory contract of 0.1.0: it adds ADDS to a vector of two.

It never changes: its digest is in golden files, and owners keep the scripts they approved.
"""

import hashlib
import json
import os
import pathlib
import struct
import sys
import time

source, target = (pathlib.Path(os.environ[name]) for name in ("SILOBUS_INPUT", "SILOBUS_OUTPUT"))
asked = json.loads((source / "round.json").read_text())
assert asked["schema_version"] == 1

hold = pathlib.Path(os.environ["HOLD"])
if hold.exists() and hold.read_text() == str(asked["round"]):
    if target.parent.name == "1":
        sys.exit("fails once")
    while hold.exists():
        time.sleep(0.02)

committed = source / "state" / "rounds"
before = committed.read_text() if committed.exists() else ""
update = None
if asked["purpose"] != "evaluate":
    values = (0.0, 0.0)
    if asked["purpose"] == "train":
        (target / "state").mkdir()
        (target / "state" / "rounds").write_text(f"{before}{asked['round']} ")
        values = struct.unpack("<2f", (source / "weights.safetensors").read_bytes()[-8:])
        values = tuple(value + float(os.environ["ADDS"]) for value in values)
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    data = struct.pack("<Q", len(text)) + text + struct.pack("<2f", *values)
    (target / "update.safetensors").write_bytes(data)
    update = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
metrics = [{"name": "loss", "phase": "received", "kind": "mean", "count": 50, "value": 0.5}]
report = {"schema_version": 1, "samples": 50, "steps": 1, "update": update, "metrics": metrics}
(target / "report.new").write_text(json.dumps(report))
(target / "report.new").replace(target / "report.json")
