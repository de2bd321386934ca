"""Who may do what: shared access keys with rights on the namespace or on one queue, and tokens signed with them.

Pure: no sockets, no clock (`now` is handed in, in milliseconds since the epoch). A token says which key signed it, for
which resource, and until when ("Service Bus access control with shared access signatures"); what it grants is the
right that the key's rule has. Where no rule is configured at all, everybody may do everything.
"""

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qsl, unquote_plus

_SCHEME_AND_HOST = re.compile(r"(?:[a-z]+://)?([^/]*)/?", re.IGNORECASE)
PREFIX = "SharedAccessSignature "


class Right(StrEnum):
    """As rules name them. Manage includes the other two."""

    SEND = "Send"
    LISTEN = "Listen"
    MANAGE = "Manage"


@dataclass(frozen=True, slots=True)
class Rule:
    """An authorization rule: a name, its keys (one is enough to sign with), and what they allow."""

    name: str
    keys: tuple[str, ...]
    rights: frozenset[Right]

    def __repr__(self) -> str:
        return f"Rule({self.name}, {sorted(self.rights)})"  # never a key


@dataclass(frozen=True, slots=True)
class Claim:
    """What a token grants, on which queue (`""`: on all), until when (milliseconds since the epoch; None: for ever)."""

    path: str
    rights: frozenset[Right]
    expires_at: int | None

    def allows(self, path: str, right: Right, now: int) -> bool:
        if self.expires_at is not None and self.expires_at <= now:
            return False
        return is_of(path.lower(), self.path) and bool({right, Right.MANAGE} & self.rights)


class Unauthorized(Exception):
    """The token proves nothing; the text says why, and never holds the token."""


class Unsigned(Unauthorized):
    """No key of a rule of that name, at that place, signed it."""


RulesOf = Callable[[str], Iterable[tuple[str, Rule]]]
"""The rules that may vouch for a path, each with the path it is for: `""` is the namespace."""


class Keyring:
    """All rules of a namespace."""

    def __init__(self, rules_of: RulesOf, *, enforced: bool) -> None:
        self._rules_of = rules_of
        self.enforced = enforced

    def redeem(self, token: str, audience: str, now: int) -> Claim:
        """What `token` grants on `audience`. Raises Unauthorized."""
        host, path = _place(audience)
        if not self.enforced:
            return Claim(path, frozenset(Right), None)
        resource, signature, expiry, name = _parts(token)
        if expiry * 1000 <= now:
            raise Unauthorized(f"ExpiredToken: The token is expired. Expiration time: {expiry}.")
        signed_host, signed_path = _place(unquote_plus(resource))
        if signed_host != host or not _is_within(path, signed_path):
            raise Unauthorized("InvalidAudience: The token is for another resource.")
        for at, rule in self._rules_of(signed_path):
            if rule.name != name or not (is_of(signed_path, at) and is_of(path, at)):
                continue
            if any(_is_signed(key, resource, expiry, signature) for key in rule.keys):
                return Claim(path, rule.rights, expiry * 1000)
        raise Unsigned("InvalidSignature: The token has an invalid signature.")

    def is_known(self, token: str) -> bool:
        """Whether a rule's key signed it, wherever the rule is; what it grants, and whether still, is not asked."""
        try:
            resource, signature, expiry, name = _parts(token)
        except Unauthorized:
            return False
        keys = [key for _, rule in self._rules_of("") if rule.name == name for key in rule.keys]
        return any(_is_signed(key, resource, expiry, signature) for key in keys)

    def login(self, name: str, key: str) -> list[Claim]:
        """What a key grants that is shown instead of a token (SASL PLAIN); nothing when it is of no rule."""
        return [
            Claim(at, rule.rights, None)
            for at, rule in self._rules_of("")
            if rule.name == name and any(hmac.compare_digest(key.encode(), known.encode()) for known in rule.keys)
        ]


class Claims:
    """What one connection has been granted so far; `changed` is called whenever that becomes more or less."""

    def __init__(self, keyring: Keyring, changed: Callable[[], None] = lambda: None) -> None:
        self._keyring = keyring
        self._changed = changed
        self._claims: dict[str, Claim] = {}
        self._restricted = keyring.enforced

    def put_token(self, token: str, audience: str, now: int) -> None:
        """Takes a token; one for the same audience replaces the last. Raises Unauthorized."""
        claim = self._keyring.redeem(token, audience, now)
        self._claims[claim.path] = claim
        self._changed()

    def login(self, name: str, key: str) -> None:
        """Takes a key itself."""
        for claim in self._keyring.login(name, key):
            self._claims[claim.path] = claim
        self._changed()

    def allow(self, path: str, right: Right, now: int) -> bool:
        """Whether what was granted includes this."""
        return not self._restricted or any(claim.allows(path, right, now) for claim in self._claims.values())

    def revoke(self) -> None:
        """As if every token had expired."""
        self._claims.clear()
        self._restricted = True
        self._changed()

    def next_expiry(self, now: int) -> int | None:
        """When the next token that still holds expires."""
        times = (claim.expires_at for claim in self._claims.values())
        return min((at for at in times if at is not None and at > now), default=None)


def sign(resource: str, key: str, expiry: int) -> str:
    """The signature of a token, in base64: HMAC-SHA256 over the encoded resource, a newline and the expiry."""
    digest = hmac.new(key.encode(), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    return b64encode(digest).decode()


def _is_signed(key: str, resource: str, expiry: int, signature: str) -> bool:
    return hmac.compare_digest(sign(resource, key, expiry).encode(), signature.encode())


def _parts(token: str) -> tuple[str, str, int, str]:
    """Resource (as it was signed: still encoded), signature, expiry in seconds since the epoch, and the rule's name."""
    if not token.startswith(PREFIX):
        raise Unauthorized("MalformedToken: Only shared access signatures are understood here.")
    raw = dict(pair.partition("=")[::2] for pair in token.removeprefix(PREFIX).split("&"))
    fields = dict(parse_qsl(token.removeprefix(PREFIX)))
    try:
        return raw["sr"], fields["sig"], int(fields["se"]), unquote_plus(fields["skn"])  # some encode the name twice
    except (KeyError, ValueError):
        raise Unauthorized("MalformedToken: A token has sr, sig, se and skn.") from None


def _place(resource: str) -> tuple[str, str]:
    """Host without port, and path, of `sb://host:port/path`; both in lower case."""
    match = _SCHEME_AND_HOST.match(resource)
    if match is None:
        raise Unauthorized("MalformedToken: The resource is not a URI.")
    return match[1].lower().partition(":")[0], resource[match.end() :].strip("/").lower()


def is_of(path: str, place: str) -> bool:
    """Whether a path is a queue, or a part of it ($deadletterqueue, $management): `q/sub` is another queue than `q`."""
    return not place or path == place or path.startswith(place + "/$")


def _is_within(path: str, scope: str) -> bool:
    return not scope or path == scope or path.startswith(scope + "/")
