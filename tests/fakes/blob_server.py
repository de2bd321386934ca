"""A small Blob service over HTTP, so that the real SDK runs in tests: the part of the REST API that `azure_blob` uses.

It keeps blobs in memory and checks no signature's cryptography; a shared access signature is obeyed by its `sp` rights.
Faults are asked for by tests: `fail` answers the next requests with an error, `before` runs ahead of a request.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Self
from urllib.parse import parse_qs
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aiohttp import web

ACCOUNT = "devstoreaccount1"
KEY = "c2lsb2J1cy10ZXN0LWtleQ=="


@dataclass
class Blob:
    data: bytes
    etag: str
    modified: datetime


@dataclass
class Container:
    blobs: dict[str, Blob] = field(default_factory=dict)
    uncommitted: dict[str, dict[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request as it came, for tests that count or look at them."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class BlobServer:
    """`async with BlobServer() as server:` then use `server.connection_string` or `server.url`."""

    def __init__(self, *, page_size: int = 5000) -> None:
        self.containers: dict[str, Container] = {}
        self.asked: list[Asked] = []
        self.before: Callable[[Asked], Awaitable[None]] | None = None
        self._page_size = page_size
        self._faults: list[tuple[int, str]] = []
        self._etags = itertools.count(0x8DC000000000000)
        self.short = 0
        """So many of the next ranges come with a byte too few, and say that this is all."""
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.url};"

    def put(self, container: str, name: str, data: bytes) -> None:
        """Somebody else makes a blob."""
        self.containers[container].blobs[name] = Blob(data, f'"0x{next(self._etags):X}"', datetime.now(UTC))

    def fail(self, status: int, code: str, times: int = 1) -> None:
        """The next `times` requests get this error."""
        self._faults += [(status, code)] * times

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        query = {key: values[-1] for key, values in parse_qs(request.query_string, keep_blank_values=True).items()}
        headers = {key.lower(): value for key, value in request.headers.items()}
        asked = Asked(request.method, request.path, query, headers)
        self.asked.append(asked)
        body = await request.read()
        try:
            if self.before:
                await self.before(asked)
            if self._faults:
                raise Refused(*self._faults.pop(0))
            return self._answer(asked, body)
        except Refused as refusal:
            text = f'<?xml version="1.0"?><Error><Code>{refusal.code}</Code><Message>{request.url}</Message></Error>'
            return web.Response(
                status=refusal.status,
                body=b"" if request.method == "HEAD" else text.encode(),
                content_type="application/xml",
                headers={"x-ms-error-code": refusal.code},
            )

    def _answer(self, asked: Asked, body: bytes) -> web.Response:
        _, _, container_name, *rest = asked.path.split("/", 3)
        if "authorization" not in asked.headers:
            self._check_rights(asked)
        if asked.query.get("restype") == "container":
            return self._container(asked, container_name)
        container = self._existing(container_name)
        name = rest[0]
        match asked.method, asked.query.get("comp"):
            case "PUT", "block":
                return self._put_block(container, name, asked.query["blockid"], body)
            case "PUT", "blocklist":
                return self._put_block_list(container, name, asked, body)
            case "GET", "blocklist":
                return self._block_list(container, name)
            case "PUT", None:
                return self._put(container, name, asked, body)
            case "GET" | "HEAD", None:
                return self._get(container, name, asked)
            case "DELETE", None:
                if container.blobs.pop(name, None) is None:
                    raise Refused(404, "BlobNotFound")
                return web.Response(status=202)
        raise Refused(400, "UnsupportedOperation")

    def _check_rights(self, asked: Asked) -> None:
        needed = {"GET": "l" if "restype" in asked.query else "r", "HEAD": "r", "PUT": "cw", "DELETE": "d"}[
            asked.method
        ]
        if asked.method == "PUT" and asked.query.get("comp") in ("block", "blocklist"):
            needed = "w"  # as Azurite has it: creating is not enough
        granted = set(needed) & set(asked.query.get("sp", ""))
        if not granted:
            raise Refused(403, "AuthorizationPermissionMismatch")
        _, _, container, *name = asked.path.split("/", 3)
        if granted == {"c"} and container in self.containers and "".join(name) in self.containers[container].blobs:
            raise Refused(403, "UnauthorizedBlobOverwrite")

    def _existing(self, name: str) -> Container:
        if name not in self.containers:
            raise Refused(404, "ContainerNotFound")
        return self.containers[name]

    def _container(self, asked: Asked, name: str) -> web.Response:
        if asked.method == "PUT":
            if name in self.containers:
                raise Refused(409, "ContainerAlreadyExists")
            self.containers[name] = Container()
            return web.Response(status=201)
        container = self._existing(name)
        prefix, marker = asked.query.get("prefix", ""), asked.query.get("marker", "")
        names = [n for n in sorted(container.blobs) if n.startswith(prefix) and n >= marker]
        page, after = names[: self._page_size], names[self._page_size : self._page_size + 1]
        rows = "".join(_row(n, container.blobs[n]) for n in page)
        return web.Response(
            content_type="application/xml",
            text=f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="{self.url}" '
            f'ContainerName="{name}"><Prefix>{prefix}</Prefix><Blobs>{rows}</Blobs><NextMarker>{"".join(after)}</NextMarker>'
            "</EnumerationResults>",
        )

    def _check_conditions(self, container: Container, name: str, asked: Asked) -> None:
        blob = container.blobs.get(name)
        if asked.headers.get("if-none-match") == "*" and blob:
            raise Refused(409, "BlobAlreadyExists")
        wanted = asked.headers.get("if-match")
        if wanted and (blob is None or blob.etag != wanted):
            raise Refused(412, "ConditionNotMet")

    def _put(self, container: Container, name: str, asked: Asked, body: bytes) -> web.Response:
        self._check_conditions(container, name, asked)
        blob = Blob(body, f'"0x{next(self._etags):X}"', datetime.now(UTC))
        container.blobs[name] = blob
        container.uncommitted.pop(name, None)
        return web.Response(status=201, headers=_headers(blob))

    def _put_block(self, container: Container, name: str, block: str, body: bytes) -> web.Response:
        blocks = container.uncommitted.setdefault(name, {})
        if any(len(other) != len(block) for other in blocks):
            raise Refused(400, "InvalidBlobOrBlock")
        blocks[block] = body
        return web.Response(status=201)

    def _block_list(self, container: Container, name: str) -> web.Response:
        blocks = container.uncommitted.get(name)
        if blocks is None and name not in container.blobs:
            raise Refused(404, "BlobNotFound")
        rows = "".join(f"<Block><Name>{n}</Name><Size>{len(b)}</Size></Block>" for n, b in (blocks or {}).items())
        text = f'<?xml version="1.0"?><BlockList><UncommittedBlocks>{rows}</UncommittedBlocks></BlockList>'
        return web.Response(content_type="application/xml", text=text)

    def _put_block_list(self, container: Container, name: str, asked: Asked, body: bytes) -> web.Response:
        self._check_conditions(container, name, asked)
        blocks = container.uncommitted.get(name, {})
        wanted = [element.text or "" for element in ElementTree.fromstring(body)]  # noqa: S314 - our own SDK wrote it
        if any(block not in blocks for block in wanted):
            raise Refused(400, "InvalidBlockList")
        return self._put(container, name, asked, b"".join(blocks[block] for block in wanted))

    def _get(self, container: Container, name: str, asked: Asked) -> web.Response:
        blob = container.blobs.get(name)
        if blob is None:
            raise Refused(404, "BlobNotFound")
        self._check_conditions(container, name, asked)
        headers = _headers(blob)
        if asked.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(blob.data))})
        wanted = asked.headers.get("x-ms-range") or asked.headers.get("range")
        if not wanted:
            return web.Response(body=blob.data, headers=headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if int(first) >= len(blob.data):
            raise Refused(416, "InvalidRange")
        part = blob.data[int(first) : int(last) + 1 if last else None]
        if self.short:
            self.short, part = self.short - 1, part[:-1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(blob.data)}"
        return web.Response(status=206, body=part, headers={**headers, "Content-Range": span})


def _headers(blob: Blob) -> dict[str, str]:
    return {
        "ETag": blob.etag,
        "Last-Modified": format_datetime(blob.modified, usegmt=True),
        "x-ms-blob-type": "BlockBlob",
        "x-ms-version": "2025-01-05",
    }


def _row(name: str, blob: Blob) -> str:
    return (
        f"<Blob><Name>{escape(name)}</Name><Properties><Etag>{escape(blob.etag.strip(chr(34)))}</Etag>"
        f"<Last-Modified>{format_datetime(blob.modified, usegmt=True)}</Last-Modified>"
        f"<Content-Length>{len(blob.data)}</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
    )
