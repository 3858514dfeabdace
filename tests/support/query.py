"""Drive's search language, the part that files.list takes in ``q``: terms joined by and, or and brackets."""

import re
from collections.abc import Callable

TOKEN = re.compile(r"\s*(?:(?P<string>'(?:\\.|[^'\\])*')|(?P<sign>!=|=|\(|\))|(?P<word>[A-Za-z]+))")
Test = Callable[[dict], bool]
MOST_TERMS = 300  # Google's limit is not published; beyond some hundred it answers "query too complex"


class QueryError(Exception):
    """What the query holds that Drive does not know."""


class Query:
    """A parsed query; call ``matches`` with a file resource. ``parents`` has the ids it asks for."""

    def __init__(self, text: str):
        self.tokens, self.parents = tokens(text), set()
        self.matches = self.either()
        if self.tokens:
            raise QueryError(f"does not end: {text!r}")

    def next(self) -> str:
        if not self.tokens:
            raise QueryError("ends too soon")
        return self.tokens.pop(0)

    def expect(self, token: str) -> None:
        if (found := self.next()) != token:
            raise QueryError(f"{found!r} where {token!r} should be")

    def either(self) -> Test:
        tests = [self.all()]
        while self.tokens[:1] == ["or"]:
            self.next()
            tests.append(self.all())
        if len(tests) > MOST_TERMS:
            raise QueryError("the query is too complex")
        return lambda item: any(test(item) for test in tests)

    def all(self) -> Test:
        tests = [self.term()]
        while self.tokens[:1] == ["and"]:
            self.next()
            tests.append(self.term())
        return lambda item: all(test(item) for test in tests)

    def term(self) -> Test:
        first = self.next()
        if first == "(":
            inner = self.either()
            self.expect(")")
            return inner
        if first.startswith("'"):
            self.expect("in")
            self.expect("parents")
            parent = value(first)
            self.parents.add(parent)
            return lambda item: parent in [entry["id"] for entry in item["parents"]]
        sign = self.next()
        if first == "trashed" and sign == "=" and (wanted := self.next()) in ("true", "false"):
            return lambda item: item["labels"]["trashed"] is (wanted == "true")
        if first in ("title", "mimeType") and sign in ("=", "!="):
            text = value(self.next()).lower()  # titles are compared without regard to case
            return lambda item: (item[first].lower() == text) is (sign == "=")
        raise QueryError(f"unknown term {first} {sign}")


def tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise QueryError(f"cannot read {text[at:]!r}")
        found.append(match.group().strip())
        at = match.end()
    return found


def value(token: str) -> str:
    if not token.startswith("'"):
        raise QueryError(f"{token!r} is no string")
    return re.sub(r"\\(.)", r"\1", token[1:-1])


def select(resource: dict, fields: str | None) -> dict:
    """The part of a resource that ``fields`` names: ``id,parents/id,items(id,title)``; raises KeyError."""
    if fields is None:
        return resource
    picked = {}
    for name, inner in split_fields(fields):
        held = resource[name] if name in resource else OPTIONAL[name]
        if held is None:
            continue
        picked[name] = (
            [select(entry, inner) for entry in held]
            if isinstance(held, list)
            else (select(held, inner) if isinstance(held, dict) else held)
        )
    return picked


# What only some resources have: a folder has no checksum, the last page no token, a personal file no drive.
OPTIONAL = dict.fromkeys(["md5Checksum", "fileSize", "nextPageToken", "driveId"])


def split_fields(fields: str) -> list[tuple[str, str | None]]:
    found = re.findall(r"(\w+)(?:\(([^()]*(?:\([^()]*\))?[^()]*)\)|/([\w/]+))?(?:,|$)", fields)
    return [(name, inner or path or None) for name, inner, path in found]
