"""The agent's half of the training contract, by hand: directories to give a script, and what it left in them."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class RoundByHand:
    source: Path
    target: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"SILOBUS_INPUT": str(self.source), "SILOBUS_OUTPUT": str(self.target)}

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.target / "report.json").read_text())
        for name in ("update", "control"):  # what the report does not describe would be refused
            if told := report.get(name):
                data = (self.target / f"{name}.safetensors").read_bytes()
                assert told["bytes"] == len(data)
                assert told.get("sha256", "left to the agent") in (
                    hashlib.sha256(data).hexdigest(),
                    "left to the agent",
                )
        return report

    @property
    def update(self) -> dict[str, torch.Tensor]:
        return load_file(self.target / "update.safetensors")

    @property
    def change(self) -> dict[str, torch.Tensor]:
        """Of the control variates."""
        return load_file(self.target / "control.safetensors")

    @property
    def written(self) -> set[str]:
        return {str(path.relative_to(self.target)) for path in self.target.rglob("*") if path.is_file()}


def make_round(
    where: Path,
    purpose: str = "train",
    *,
    weights: Path | dict[str, torch.Tensor] | None = None,
    control: Path | dict[str, torch.Tensor] | None = None,
    state: Path | None = None,
    **changes: Any,
) -> RoundByHand:
    """An input directory as the agent makes it, read-only, and an empty output directory."""
    made = RoundByHand(where / "in", where / "out")
    made.source.mkdir(parents=True)
    made.target.mkdir()
    described: dict[str, dict[str, Any] | None] = {"weights": None, "control": None}
    for role, tensors in (("weights", weights), ("control", control)):
        if tensors is None:
            continue
        path = made.source / f"{role}.safetensors"
        if isinstance(tensors, Path):
            shutil.copyfile(tensors, path)
        else:
            save_file(tensors, path)
        described[role] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    if state is not None:
        shutil.copytree(state, made.source / "state")
    else:
        (made.source / "state").mkdir()
    asked = {
        "schema_version": 1,
        "experiment": "bc-1",
        "run": "bc-1_3fa91c2e",
        "round": 0 if purpose == "initialise" else 1,
        "task": "breast-cancer",
        "purpose": purpose,
        "share": ["*"],
        "transfer": {"form": "weights", "dtype": None},
        "hyperparameters": {},
        "data": {},
        "seed": 7,
        "roles": {"initialise": ["weights"], "train": ["weights"]}.get(purpose, []),
        **described,
    }
    (made.source / "round.json").write_text(json.dumps(asked | changes))
    for path in [made.source, *made.source.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return made
