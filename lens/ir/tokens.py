"""The words of the text form: one line of text as a stream of tokens."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import NamedTuple, NoReturn

from lens.errors import TextError

#: A word and the blanks before it.
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<leaf>@(?:"(?:[^"\\]|\\.)*"|[\w.]+))
    | (?P<value>%\d+)
    | (?P<type>\w+\[[\d,?]*\](?:@[\w:]+)?(?:\#\w+)?)
    | (?P<symbol><\w+\ [^<>]*>)
    | (?P<number>-?(?:\d+\.?\d*(?:e[+-]?\d+)?|(?:inf|nan)\b(?!\.|\s*=)))
    | (?P<name>[^\W\d][\w.<>]*)
    | (?P<mark>->|=>|[{}()\[\],:=~^\#-])
    | (?P<end>//.*|$)
    )""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """A word: its kind (string, leaf, value, type, symbol, number, name, mark, end) and its text."""

    kind: str
    text: str


#: What stands behind the last token, twice: the parser looks one further on.
_END = Token("end", "")


@lru_cache(maxsize=4096)
def _unquoted(text: str) -> str:
    """The string that is quoted so. File names and functions come again on every line."""
    return str(json.loads(text))


class Line:
    """One line of text, read token by token.

    Args:
        text: The line.
        number: Its number in the text, from 1, for error messages.
    """

    def __init__(self, text: str, number: int) -> None:
        self.text = text
        self.number = number
        self.tokens = self._split()
        self.position = 0

    def _split(self) -> list[Token]:
        tokens: list[Token] = []
        place = 0
        for match in _TOKEN.finditer(self.text):
            if match.start() != place:
                break
            kind = match.lastgroup
            assert kind is not None
            if kind == "end":
                return [*tokens, _END, _END]
            tokens.append(Token(kind, match[kind]))
            place = match.end()
        return self.fail(f"unexpected character {self.text[place:].lstrip()[:1]!r}")

    def peek(self, ahead: int = 0) -> Token:
        """The next token, or the one after it, left in place."""
        return self.tokens[self.position + ahead]

    def take(self, kind: str | None = None, text: str | None = None) -> str:
        """The text of the next token, which must be of this kind and text. Raises TextError if not."""
        token = self.tokens[self.position]
        if (kind and token.kind != kind) or (text and token.text != text):
            self.fail(f"{text or kind} expected, {token.text or 'end of line'!r} found")
        if token is not _END:
            self.position += 1
        return token.text

    def accept(self, text: str) -> bool:
        """Take the next token if this is its text."""
        token = self.tokens[self.position]
        if token.text == text and token.kind != "string":
            self.position += 1
            return True
        return False

    def string(self) -> str:
        """Take a quoted string."""
        return _unquoted(self.take("string"))

    def integer(self) -> int:
        """Take a whole number."""
        text = self.take("number")
        if not text.lstrip("-").isdigit():
            self.fail(f"whole number expected, {text!r} found")
        return int(text)

    def end(self) -> None:
        """Insist that nothing is left."""
        if self.peek().kind != "end":
            self.fail(f"unexpected {self.peek().text!r}")

    def fail(self, what: str) -> NoReturn:
        """Raise TextError for this line."""
        raise TextError(
            what,
            where=f"line {self.number}: {self.text.strip()[:120]}",
            hint="docs/format.md describes the text form",
        )
