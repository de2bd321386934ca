"""The administration interface over HTTP, for queues: create, get, list, update, delete, and what the namespace is.

What `ServiceBusAdministrationClient` asks is answered as the service answers it (Service Bus REST reference: "Create or
Update Entity", "Get Entity", "Enumerate", "Delete Entity"; the generated client of azure-servicebus 7.15). Here are the
routes, the rights and the refusals; XML is in `atom`, settings are in `descriptions`, what a queue is, in `namespace`.
Topics are not supported and say so. Answers are given at once and leave when what they tell of is on disk.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from urllib.parse import quote
from uuid import uuid4

from servicebus_emulator import atom, descriptions, log
from servicebus_emulator.atom import MalformedXml, Xml
from servicebus_emulator.config import is_queue_name
from servicebus_emulator.descriptions import BadValue, Unsupported
from servicebus_emulator.http import HttpRequest, HttpResponse
from servicebus_emulator.namespace import LiveQueue, Namespace
from servicebus_emulator.rights import Keyring, Right, Unauthorized, Unsigned

ENTRY = "application/atom+xml;type=entry;charset=utf-8"
FEED = "application/atom+xml;type=feed;charset=utf-8"
MOST_ON_A_PAGE = 100
NAMESPACE = ""


class Refusal(Exception):
    """What is answered instead: a status, and why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Lacking(Refusal):
    """The key is good, and its rule does not go that far: a mistake of somebody known, or only a question."""

    def __init__(self, path: str) -> None:
        place = f"the queue '{path}' or the namespace" if path else "the namespace"
        super().__init__(
            401,
            f"SubCode=40100. Manage claim is required for this operation: the key is good, but its rule lacks Manage "
            f"on {place}.",
        )


class Administration:
    """The ``Site`` of a namespace."""

    def __init__(self, namespace: Namespace, keyring: Keyring, max_message_size: int) -> None:
        self._namespace = namespace
        self._keyring = keyring
        self._max_message_size = max_message_size
        self._started_at = namespace.now()

    def after_commit(self, act: Callable[[], None]) -> None:
        self._namespace.journal.after_commit(act)

    def answer(self, request: HttpRequest) -> HttpResponse:
        note = log.info
        try:
            return self._answer(request)
        except Refusal as refusal:
            status, detail = refusal.status, str(refusal)
            note = log.debug if isinstance(refusal, Lacking) else note
        except Unauthorized as refused:
            status, detail = 401, f"{refused} A key with the right is needed; see AuthorizationRules."
        except (MalformedXml, BadValue) as wrong:
            status, detail = 400, f"SubCode=40000. {wrong}"
        except Unsupported as wanting:
            status, detail = 501, f"SubCode=50100. {wanting}"
        note("administration.refused", method=request.method, path=request.path, status=status, reason=detail)
        detail = f"{detail} TrackingId:{uuid4()}, Timestamp:{atom.moment(self._namespace.now())}"
        return HttpResponse(status, atom.document(atom.error(status, detail)), headers=_challenge(status))

    def _answer(self, request: HttpRequest) -> HttpResponse:
        path = request.path.strip("/")
        match request.method, path.lower():
            case "GET", "$namespaceinfo":
                return self._namespace_info(request)
            case "GET", "$resources/queues":
                return self._list(request)
            case "GET", "$resources/topics":
                self._authorize(request, NAMESPACE)
                return _found(atom.feed(self._url(request), "Topics", self._namespace.now(), (), None), FEED)
            case _, special if not special or special.startswith("$"):
                raise Refusal(404, f"SubCode=40400. There is no {request.method} of {request.path} here.")
            case "GET", _:
                return self._get(request, path)
            case "PUT", _:
                return self._put(request, path)
            case "DELETE", _:
                return self._delete(request, path)
        raise Refusal(405, f"SubCode=40500. {request.method} is not supported here; messages travel by AMQP.")

    # -------------------------------------------------------------------------------------------- the queues

    def _get(self, request: HttpRequest, name: str) -> HttpResponse:
        self._authorize(request, name)
        live = self._namespace.find(name.lower())
        if live is not None:
            return _found(self._entry(request, live), ENTRY)
        _refuse_subscriptions(name)
        return _found(_nothing(self._namespace.now()), FEED)

    def _list(self, request: HttpRequest) -> HttpResponse:
        self._authorize(request, NAMESPACE)
        skip = _count(request.query, "$skip", 0)
        top = min(_count(request.query, "$top", MOST_ON_A_PAGE), MOST_ON_A_PAGE)
        if not top:
            raise BadValue("$top is at least 1.")
        queues, url = self._namespace.queues(), self._url(request)
        following = f"{url}?$skip={skip + top}&$top={top}" if skip + top < len(queues) else None
        entries = [self._entry(request, live, base=url) for live in queues[skip : skip + top]]
        return _found(atom.feed(url, "Queues", self._namespace.now(), entries, following), FEED)

    def _put(self, request: HttpRequest, name: str) -> HttpResponse:
        self._authorize(request, NAMESPACE)
        if not is_queue_name(name):
            raise BadValue(f"{name!r} is no queue's name: letters, digits, periods, hyphens, underscores and slashes.")
        _refuse_subscriptions(name)
        live, if_match = self._namespace.find(name.lower()), request.headers.get("if-match")
        if if_match is None and live is not None:
            raise Refusal(409, f"SubCode=40900. Conflict. The messaging entity '{live.name}' already exists.")
        if if_match is not None and if_match.strip() != "*":
            raise BadValue("If-Match is *, to update whatever is there, or is left out, to create.")
        if if_match is not None and live is None:
            raise _missing(name)
        before = None if live is None else live.queue.settings
        settings = descriptions.read_settings(atom.read_description(request.body), before, self._max_message_size)
        if live is None:
            return _found(self._entry(request, self._namespace.create(name, settings)), ENTRY, 201)
        self._namespace.update(live, settings)
        return _found(self._entry(request, live), ENTRY)

    def _delete(self, request: HttpRequest, name: str) -> HttpResponse:
        self._authorize(request, NAMESPACE)
        live = self._namespace.find(name.lower())
        if live is None:
            raise _missing(name)
        self._namespace.delete(live)
        return HttpResponse(200)

    # ----------------------------------------------------------------------------------------- the namespace

    def _namespace_info(self, request: HttpRequest) -> HttpResponse:
        """The namespace has no history of its own: it began, as far as it knows, with its oldest queue."""
        self._authorize(request, NAMESPACE)
        queues = self._namespace.queues()
        created = min((live.created_at for live in queues), default=self._started_at)
        modified = max((live.updated_at for live in queues), default=self._started_at)
        info = atom.described(
            "NamespaceInfo",
            (
                atom.tag("CreatedTime", atom.moment(created)),
                atom.tag("MessagingSKU", "Standard"),
                atom.tag("ModifiedTime", atom.moment(modified)),
                atom.tag("Name", _author(request)),
                atom.tag("NamespaceType", "Messaging"),
            ),
        )
        entry = atom.entry(self._url(request), _author(request), _author(request), (created, modified), info)
        return _found(entry, ENTRY)

    # ------------------------------------------------------------------------------------------------ rights

    def _authorize(self, request: HttpRequest, path: str) -> None:
        """Manage on that path, by the token of this one request. Raises Unauthorized, Refusal."""
        if not self._keyring.enforced:
            return
        token = request.headers.get("authorization")
        if token is None:
            raise Refusal(401, "MissingToken: The request has no Authorization header.")
        if token.lower().startswith("bearer "):
            raise Refusal(
                401,
                "InvalidToken: Tokens of Microsoft Entra are not understood by this emulator; "
                "use a connection string with a shared access key.",
            )
        now = self._namespace.now()
        audience = f"https://{request.headers.get('host', '')}/{path}"
        try:
            claim = self._keyring.redeem(token, audience, now)
        except Unsigned:
            if self._keyring.is_known(token):
                raise Lacking(path) from None
            raise
        if not claim.allows(path, Right.MANAGE, now):
            raise Lacking(path)

    # ------------------------------------------------------------------------------------------------ writing

    def _entry(self, request: HttpRequest, live: LiveQueue, *, base: str | None = None) -> Xml:
        parts = descriptions.write_settings(live, self._max_message_size)
        url = f"{_root(request)}/{quote(live.name)}"
        times = (live.created_at, live.updated_at)
        return atom.entry(url, live.name, _author(request), times, atom.described("QueueDescription", parts), base=base)

    def _url(self, request: HttpRequest) -> str:
        return f"{_root(request)}/{quote(request.path.strip('/'), safe='/$')}"


def _found(root: Xml, content_type: str, status: int = HTTPStatus.OK) -> HttpResponse:
    return HttpResponse(status, atom.document(root), content_type)


def _nothing(now: int) -> Xml:
    """What the service answers to a GET of what is not there."""
    return atom.tag(
        "feed",
        atom.tag("title", "Publicly Listed Services", type="text"),
        atom.tag("subtitle", "This is the list of publicly-listed services currently available.", type="text"),
        atom.tag("id", f"uuid:{uuid4()};id=1"),
        atom.tag("updated", atom.moment(now)),
        atom.tag("generator", "Service Bus 1.1"),
        xmlns=atom.ATOM,
    )


def _missing(name: str) -> Refusal:
    return Refusal(404, f"SubCode=40400. Not Found. The messaging entity '{name}' could not be found.")


def _refuse_subscriptions(name: str) -> None:
    if "subscriptions" in name.lower().split("/")[1:]:
        raise Unsupported("Topics and their subscriptions are not supported by this emulator; it has queues only.")


def _count(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadValue(f"{name} is a whole number.")
    return int(text)


def _root(request: HttpRequest) -> str:
    return f"https://{request.headers.get('host', 'localhost')}"


def _author(request: HttpRequest) -> str:
    """The namespace's name, which is the first label of its host's, or all of an address."""
    host = request.headers.get("host", "localhost").rpartition("@")[2]
    name = host.rsplit(":", 1)[0]
    return name if name.replace(".", "").isdigit() else name.split(".")[0]


def _challenge(status: int) -> dict[str, str]:
    """RFC 9110, 11.6.1: a 401 says how to do better."""
    return {"WWW-Authenticate": "SharedAccessSignature"} if status == HTTPStatus.UNAUTHORIZED else {}
