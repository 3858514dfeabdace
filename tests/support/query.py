"""Drive's search language, the part that files.list takes in ``q``: terms joined by and, or and brackets."""

import re
from collections.abc import Callable

TOKEN = re.compile(r"\s*(?:(?P<string>'(?:\\.|[^'\\])*')|(?P<operator>!=|=|\(|\))|(?P<word>[A-Za-z]+))")
Predicate = Callable[[dict], bool]
MAX_TERMS = 300  # Google's limit is not published; beyond some hundred it answers "query too complex"


class QueryError(Exception):
    """What the query holds that Drive does not know."""


class Query:
    """A parsed query; call ``matches`` with a file resource. ``parents`` has the ids it asks for."""

    def __init__(self, text: str):
        self.tokens, self.parents = tokenize(text), set()
        self.matches = self.parse_or()
        if self.tokens:
            raise QueryError(f"does not end: {text!r}")

    def next(self) -> str:
        if not self.tokens:
            raise QueryError("ends too soon")
        return self.tokens.pop(0)

    def expect(self, token: str) -> None:
        if (found := self.next()) != token:
            raise QueryError(f"{found!r} where {token!r} should be")

    def parse_or(self) -> Predicate:
        predicates = [self.parse_and()]
        while self.tokens[:1] == ["or"]:
            self.next()
            predicates.append(self.parse_and())
        if len(predicates) > MAX_TERMS:
            raise QueryError("the query is too complex")
        return lambda item: any(matches(item) for matches in predicates)

    def parse_and(self) -> Predicate:
        predicates = [self.parse_term()]
        while self.tokens[:1] == ["and"]:
            self.next()
            predicates.append(self.parse_term())
        return lambda item: all(matches(item) for matches in predicates)

    def parse_term(self) -> Predicate:
        first = self.next()
        if first == "(":
            inner = self.parse_or()
            self.expect(")")
            return inner
        if first.startswith("'"):
            self.expect("in")
            self.expect("parents")
            parent = string_value(first)
            self.parents.add(parent)
            return lambda item: parent in [entry["id"] for entry in item["parents"]]
        operator = self.next()
        if first == "trashed" and operator == "=" and (wanted := self.next()) in ("true", "false"):
            return lambda item: item["labels"]["trashed"] is (wanted == "true")
        if first in ("title", "mimeType") and operator in ("=", "!="):
            text = string_value(self.next()).lower()  # titles are compared without regard to case
            return lambda item: (item[first].lower() == text) is (operator == "=")
        raise QueryError(f"unknown term {first} {operator}")


def tokenize(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise QueryError(f"cannot read {text[at:]!r}")
        found.append(match.group().strip())
        at = match.end()
    return found


def string_value(token: str) -> str:
    if not token.startswith("'"):
        raise QueryError(f"{token!r} is no string")
    return re.sub(r"\\(.)", r"\1", token[1:-1])


def select_fields(resource: dict, fields: str | None) -> dict:
    """The part of a resource that ``fields`` names: ``id,parents/id,items(id,title)``; raises KeyError."""
    if fields is None:
        return resource
    picked = {}
    for name, inner in split_fields(fields):
        held = resource[name] if name in resource else OPTIONAL[name]
        if held is None:
            continue
        picked[name] = (
            [select_fields(entry, inner) for entry in held]
            if isinstance(held, list)
            else (select_fields(held, inner) if isinstance(held, dict) else held)
        )
    return picked


# What only some resources have: a folder has no checksum, the last page no token, a personal file no drive.
OPTIONAL = dict.fromkeys(["md5Checksum", "fileSize", "nextPageToken", "driveId"])


def split_fields(fields: str) -> list[tuple[str, str | None]]:
    found = re.findall(r"(\w+)(?:\(([^()]*(?:\([^()]*\))?[^()]*)\)|/([\w/]+))?(?:,|$)", fields)
    return [(name, inner or path or None) for name, inner, path in found]
