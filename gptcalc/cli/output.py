"""Where text leaves: answers to stdout, talk to stderr, on whatever encoding they have."""

import os
import sys
from typing import TextIO

from gptcalc.errors import OutputError

#: What stands for each character that a terminal without UTF-8 cannot print.
ASCII = str.maketrans(
    {
        "×": "x",
        "·": "*",
        "−": "-",
        "–": "-",
        "→": "->",
        "²": "^2",
        "…": "...",
        "±": "+-",
        "µ": "u",
        "█": "#",
        "’": "'",
        "§": "sec. ",
    }
    | dict.fromkeys("▏▎▍▌", ".")
    | dict.fromkeys("▋▊▉", "#")
)


def answer(text: str) -> None:
    """Print the answer."""
    _write(sys.stdout, text)


def say(text: str) -> None:
    """Print what is not the answer."""
    _write(sys.stderr, f"{text}\n")


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:
        return  # closed by whoever started the process (`>&-`)
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # Nothing more can be written, not even at exit. A reader that left (`| head`) has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"the answer could not be written: {error.strerror}") from None
