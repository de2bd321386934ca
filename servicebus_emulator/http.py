"""What HTTP is to this program: a request in, a response out. How either travels is in `web`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HttpRequest:
    method: str  # upper case
    path: str  # percent-decoded, without the query; begins with a slash
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    status: int
    body: bytes = b""
    content_type: str = "application/xml;charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


class Site(Protocol):
    """Answers requests. What a response tells of is on disk once `after_commit` acts."""

    def answer(self, request: HttpRequest) -> HttpResponse: ...

    def after_commit(self, act: Callable[[], None]) -> None: ...
