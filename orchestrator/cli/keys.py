"""One shared access key for everybody in a local federation who has rights (`messages/rights.yaml`).

Here lives what a key becomes: rules for the emulator, and a connection string for its owner. Nobody gets a key that
opens everything: there is none. Which file is whose is in `folder`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from messages.rights import Principal

Keys = Mapping[str, SecretStr]
"""By the name of who owns it, which is also the name of the rule."""


def new_key() -> SecretStr:
    """A key that nobody had before."""
    return SecretStr(secrets.token_hex(16))


def connection_string(port: int, name: str, key: SecretStr) -> SecretStr:
    """How its owner reaches the emulator on this machine, with any Service Bus SDK."""
    return SecretStr(
        f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName={name};"
        f"SharedAccessKey={key.get_secret_value()};UseDevelopmentEmulator=true"
    )


def port_of(connection: str) -> int:
    """The port in a connection string that `connection_string` made."""
    return int(_parts(connection)["Endpoint"].rpartition(":")[2])


def key_in(file: Path, name: str) -> SecretStr | None:
    """The key in somebody's file, if it is theirs: neither copied from another's nor one that opened everything."""
    try:
        parts = _parts(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None
    key = parts.get("SharedAccessKey")
    return SecretStr(key) if key and parts.get("SharedAccessKeyName") == name else None


def rules(queue: str, everybody: Iterable[Principal], keys: Keys) -> list[dict[str, Any]]:
    """A queue's authorization rules: everybody who has a right on it, with the same name and key as everywhere."""
    return [
        {"Name": who.name, "Rights": sorted(who.queues[queue]), "PrimaryKey": keys[who.name].get_secret_value()}
        for who in everybody
        if queue in who.queues
    ]


def _parts(connection: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in connection.split(";") if "=" in part)
