"""XML as the administration interface speaks it: Atom entries and feeds (RFC 4287), and its error document.

What is read is not trusted: no document type (so no entities), and limits on size and depth. What is written looks as
the service writes it, down to its prefixes, since some clients look for these. What an entry says is not known here.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

ATOM = "http://www.w3.org/2005/Atom"
CONNECT = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
MOST_BYTES = 256 * 1024
DEEPEST = 12
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECLARATION = '<?xml version="1.0" encoding="utf-8"?>'

Element = ElementTree.Element


class MalformedXml(Exception):
    """What came is not what is understood here; the text says why."""


class Xml(str):
    """Text that is XML already."""

    __slots__ = ()


class _Builder(ElementTree.TreeBuilder):
    """Stops at what nobody has reason to send."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> Element:
        self._depth += 1
        if self._depth > DEEPEST:
            raise MalformedXml(f"the XML is more than {DEEPEST} levels deep")
        return super().start(tag, attrs)

    def end(self, tag: str) -> Element:
        self._depth -= 1
        return super().end(tag)

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise MalformedXml("the XML has a document type declaration, which is refused")


def read_description(body: bytes) -> Element:
    """What the content of an entry describes. Raises MalformedXml."""
    if len(body) > MOST_BYTES:
        raise MalformedXml(f"the body is {len(body)} bytes; {MOST_BYTES} are allowed")
    parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 - the builder refuses what is dangerous
    try:
        parser.feed(body)
        root = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: unknown encodings
        raise MalformedXml(f"the body is not XML: {error}") from None
    content = root.find(f"{{{ATOM}}}content")
    if root.tag != f"{{{ATOM}}}entry" or content is None or len(content) != 1:
        raise MalformedXml("the body is an Atom entry whose content is one description")
    return content[0]


def name_of(element: Element) -> str:
    """Without the namespace."""
    return element.tag.rpartition("}")[2]


def tag(name: str, *content: str, **attributes: str) -> Xml:
    """An element. In attributes' names a double underscore stands for the colon after a prefix."""
    said = "".join(f" {key.replace('__', ':')}={quoteattr(_legal(value))}" for key, value in attributes.items())
    inner = "".join(part if isinstance(part, Xml) else escape(_legal(part)) for part in content)
    return Xml(f"<{name}{said}>{inner}</{name}>" if inner else f"<{name}{said} />")


def described(name: str, parts: Iterable[Xml]) -> Xml:
    """A description as it stands in an entry's content."""
    return tag("content", tag(name, *parts, xmlns=CONNECT, xmlns__i=INSTANCE), type="application/xml")


def entry(url: str, title: str, author: str, times: tuple[int, int], content: Xml, *, base: str | None = None) -> Xml:
    """An entry that was made and last changed at these times; with a base it is one of a feed."""
    created, updated = times
    attributes = {"xmlns": ATOM} if base is None else {"xml:base": base}
    return tag(
        "entry",
        tag("id", url),
        tag("title", title, type="text"),
        tag("published", moment(created)),
        tag("updated", moment(updated)),
        tag("author", tag("name", author)),
        tag("link", rel="self", href=url),
        content,
        **attributes,
    )


def feed(url: str, title: str, now: int, entries: Iterable[Xml], following: str | None) -> Xml:
    """A page of entries; clients take a second link for that to the page that follows."""
    links = [tag("link", rel="self", href=url)]
    if following is not None:
        links.append(tag("link", rel="next", href=following))
    head = (tag("title", title, type="text"), tag("id", url), tag("updated", moment(now)))
    return tag("feed", *head, *links, *entries, xmlns=ATOM)


def error(code: int, detail: str) -> Xml:
    return tag("Error", tag("Code", str(code)), tag("Detail", detail))


def document(root: Xml) -> bytes:
    return f"{_DECLARATION}{root}".encode()


def moment(milliseconds: int | None) -> str:
    """A time as the service writes it; the first of all where there was none."""
    if milliseconds is None:
        return "0001-01-01T00:00:00Z"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _legal(text: str) -> str:
    """XML 1.0, 2.2: without what no document may hold."""
    return _NOT_XML.sub("\ufffd", text)
