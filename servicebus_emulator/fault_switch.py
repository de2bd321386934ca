"""`/$faults` over HTTP: `PUT` asks for other faults while the emulator runs, `GET` tells which are on and what struck.

Both need Manage on the namespace. Everything else is passed on to the site behind. What the faults are is in `faults`.
"""

import json
from collections.abc import Callable
from typing import Any

from servicebus_emulator import log
from servicebus_emulator.faults import Faults, FaultsError
from servicebus_emulator.http import HttpRequest, HttpResponse, Site
from servicebus_emulator.rights import Keyring, Right, Unauthorized

PATH = "/$faults"
NAMESPACE = ""


class FaultSwitch:
    """The ``Site`` in front of another."""

    def __init__(self, faults: Faults, keyring: Keyring, now: Callable[[], int], behind: Site) -> None:
        self._faults = faults
        self._keyring = keyring
        self._now = now
        self._behind = behind

    def after_commit(self, act: Callable[[], None]) -> None:
        self._behind.after_commit(act)

    def answer(self, request: HttpRequest) -> HttpResponse:
        if request.path.rstrip("/").lower() != PATH:
            return self._behind.answer(request)
        try:
            self._authorize(request)
            if request.method == "PUT":
                self._faults.change(*_read(request.body))
                log.warning("faults.on", faults=self._faults.asked, seed=self._faults.seed)
            elif request.method != "GET":
                return _json(405, {"error": "GET and PUT are all that can be done with faults"})
        except Unauthorized as refused:
            return _json(401, {"error": str(refused)})
        except FaultsError as wrong:
            return _json(400, {"error": str(wrong)})
        faults = self._faults
        return _json(200, {"faults": faults.asked, "seed": faults.seed, "struck": dict(faults.struck)})

    def _authorize(self, request: HttpRequest) -> None:
        if not self._keyring.enforced:
            return
        token, now = request.headers.get("authorization", ""), self._now()
        claim = self._keyring.redeem(token, f"https://{request.headers.get('host', '')}/", now)
        if not claim.allows(NAMESPACE, Right.MANAGE, now):
            raise Unauthorized("Manage claim is required for this operation; the key's rule lacks it.")


def _read(body: bytes) -> tuple[list[str], int | None]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise FaultsError("the body is JSON") from None
    if not isinstance(asked, dict) or not asked.keys() <= {"faults", "seed"}:
        raise FaultsError('the body is {"faults": ["detach=2%"], "seed": 1}')
    faults, seed = asked.get("faults", []), asked.get("seed")
    if not isinstance(faults, list) or not all(isinstance(fault, str) for fault in faults):
        raise FaultsError("faults is a list of strings like detach=2%")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise FaultsError("seed is a whole number")
    return faults, seed


def _json(status: int, value: dict[str, Any]) -> HttpResponse:
    return HttpResponse(status, json.dumps(value).encode(), "application/json")
