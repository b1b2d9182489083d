"""containerd's filter language (containerd, ``pkg/filters``): ``name==base,labels."a.b"~=^x``; a comma is "and", several filters are "or"."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ipfs_store.errors import InvalidInput

Lookup = Callable[[Sequence[str]], str | None]
"""From a field's path to its value; None where it is absent."""

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNQUOTED = re.compile(r"[^,\s\"'/|]?[^,\s]*")
_OPERATORS = ("==", "!=", "~=")


class InvalidFilter(InvalidInput):
    """A filter that breaks the language's rules."""


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str
    value: str

    def matches(self, lookup: Lookup) -> bool:
        found = lookup(self.path)
        if self.operator == "":
            return found is not None
        if self.operator == "==":
            return found is not None and found == self.value
        if self.operator == "!=":
            return found != self.value
        return found is not None and re.search(self.value, found) is not None


@dataclass(frozen=True, slots=True)
class Filter:
    """Any of several filters, each of selectors that must all match; without filters, everything matches."""

    any_of: tuple[tuple[_Selector, ...], ...]

    def matches(self, lookup: Lookup) -> bool:
        """Whether what ``lookup`` looks into is selected."""
        return not self.any_of or any(all(selector.matches(lookup) for selector in selectors) for selectors in self.any_of)


def parse_filters(texts: Sequence[str]) -> Filter:
    """Raises InvalidFilter."""
    return Filter(tuple(_Parser(text).filter() for text in texts))


def lookup_in(fields: Mapping[str, str], labels: Mapping[str, str]) -> Lookup:
    """A lookup of plain fields and of ``labels.KEY``."""

    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "labels" and len(path) > 1:
            return labels.get(".".join(path[1:]))
        return fields.get(path[0]) if len(path) == 1 else None  # an empty one is present

    return lookup


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def filter(self) -> tuple[_Selector, ...]:
        selectors: list[_Selector] = []
        if not self._text.strip():
            return ()
        while True:
            selectors.append(self._selector())
            if self._at == len(self._text):
                return tuple(selectors)
            if self._text[self._at] != ",":
                raise self._wrong("a comma")
            self._at += 1

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._text.startswith(".", self._at):
            self._at += 1
            path.append(self._field())
        operator = next((one for one in _OPERATORS if self._text.startswith(one, self._at)), "")
        self._at += len(operator)
        value = self._value(operator) if operator else ""
        if operator == "~=":
            try:
                re.compile(value)
            except re.error as error:
                raise InvalidFilter(f"the filter {self._text!r} has a regular expression that is none: {error}") from error
        return _Selector(tuple(path), operator, value)

    def _field(self) -> str:
        if self._text.startswith('"', self._at):
            return self._quoted('"')
        match = _BARE.match(self._text, self._at)
        if match is None:
            raise self._wrong("a field")
        self._at = match.end()
        return match[0]

    def _value(self, operator: str) -> str:
        first = self._text[self._at : self._at + 1]
        if first == '"' or (operator == "~=" and first in ("/", "|")):
            return self._quoted(first)
        match = _UNQUOTED.match(self._text, self._at)
        if match is None or not match[0]:
            raise self._wrong("a value")
        self._at = match.end()
        return match[0]

    def _quoted(self, quote: str) -> str:
        end = self._at + 1
        while end < len(self._text) and self._text[end] != quote:
            end += 2 if self._text[end] == "\\" else 1
        if end >= len(self._text):
            raise self._wrong(f"a closing {quote}")
        raw = self._text[self._at + 1 : end]
        self._at = end + 1
        if quote != '"':
            return raw.replace("\\" + quote, quote)
        try:
            return str(json.loads(f'"{raw}"'))
        except ValueError:
            return re.sub(r"\\(.)", r"\1", raw)

    def _wrong(self, expected: str) -> InvalidFilter:
        return InvalidFilter(f"the filter {self._text!r} has no {expected.removeprefix('a ')} at character {self._at}")
