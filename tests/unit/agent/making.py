"""What tests of the agent are made of: tasks, announcements, safetensors files."""

import json
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from messages.schemas import Payload, Purpose, RoundAnnounced
from silo_agent.policy import Task

CODE = "a" * 64
RUN = "bc_00000000"


def task(**changes: Any) -> Task:
    """A task whose owner is of middling strictness."""
    return Task.model_validate(
        {
            "command": ["python", "train.py"],
            "directory": "/nowhere",
            "code": {"path": "/nowhere/train.py", "sha256": CODE},
            "limits": {"rounds": 10},
            "outbound": {
                "tensors": ["*"],
                "dtypes": ["float32"],
                "max_bytes": 1000,
                "metrics": {"loss": {}},
                "min_samples": 20,
            },
            **changes,
        }
    )


def announced(**changes: Any) -> RoundAnnounced:
    """An announcement that the middling task accepts."""
    purpose = changes.get("purpose", Purpose.TRAIN)
    weights = Payload(sha256="b" * 64, bytes=100, layout="c" * 64)
    return RoundAnnounced.model_validate(
        {
            "experiment": "bc",
            "run": RUN,
            "round": 0 if purpose == Purpose.INITIALISE else 1,
            "purpose": purpose,
            "announcement": 1,
            "task": "t",
            "payloads": {} if purpose == Purpose.INITIALISE else {"weights": weights},
            "silos": 2,
            "quorum": 2,
            "deadline": datetime(2030, 1, 1, tzinfo=UTC),
            **changes,
        }
    )


def safetensors(tensors: dict[str, list[float]], metadata: dict[str, str] | None = None) -> bytes:
    """A file of float32 vectors."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata is not None else {}
    data = b""
    for name, values in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write(path: Path, value: object) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
