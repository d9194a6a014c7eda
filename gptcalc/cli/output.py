"""Where text leaves: answers to stdout, talk to stderr, on whatever encoding they have."""

import sys
from typing import TextIO

#: What stands for each character that a terminal without UTF-8 cannot print.
ASCII = str.maketrans({"×": "x", "·": "*", "−": "-", "–": "-", "→": "->", "²": "^2", "…": "...", "█": "#", "’": "'"})


def answer(text: str) -> None:
    """Print the answer."""
    _write(sys.stdout, text)


def say(text: str) -> None:
    """Print what is not the answer."""
    _write(sys.stderr, f"{text}\n")


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    stream.write(text)
