"""The words of the text form: one line of text as a stream of tokens."""

from __future__ import annotations

import json
import re
from typing import NamedTuple, NoReturn

from lens.errors import TextError

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|//.*)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<leaf>@(?:"(?:[^"\\]|\\.)*"|[\w.]+))
    | (?P<value>%\d+)
    | (?P<type>\w+\[[\d,?]*\](?:@[\w:]+)?(?:\#\w+)?)
    | (?P<symbol><\w+\ [^<>]*>)
    | (?P<number>-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf\b|nan\b))
    | (?P<name>[A-Za-z_][\w.<>]*)
    | (?P<mark>->|=>|[{}()\[\],:=~^\#-])
    """,
    re.VERBOSE,
)


class Token(NamedTuple):
    """A word: its kind (string, leaf, value, type, symbol, number, name, mark, end) and its text."""

    kind: str
    text: str


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
        while place < len(self.text):
            match = _TOKEN.match(self.text, place)
            if match is None:
                self.fail(f"unexpected character {self.text[place]!r}")
            if match.lastgroup != "space":
                tokens.append(Token(match.lastgroup or "", match.group()))
            place = match.end()
        return tokens

    def peek(self, ahead: int = 0) -> Token:
        """The next token, or one further on, left in place."""
        place = self.position + ahead
        return self.tokens[place] if place < len(self.tokens) else Token("end", "")

    def take(self, kind: str | None = None, text: str | None = None) -> str:
        """The text of the next token, which must be of this kind and text. Raises TextError if not."""
        token = self.peek()
        if (kind and token.kind != kind) or (text and token.text != text):
            self.fail(f"{text or kind} expected, {token.text or 'end of line'!r} found")
        self.position += 1
        return token.text

    def accept(self, text: str) -> bool:
        """Take the next token if this is its text."""
        if self.peek().text == text and self.peek().kind != "string":
            self.position += 1
            return True
        return False

    def string(self) -> str:
        """Take a quoted string."""
        return str(json.loads(self.take("string")))

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
            hint="the text form is described in lens/ir/printer.py",
        )
