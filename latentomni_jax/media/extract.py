"""The answer inside a model's text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# A letter on its own or followed by punctuation; "A dog barks" does not choose option A.
_LETTER = re.compile(r"^(?:\\text\{)?\W*([A-Z])(?:[.):,}]|\s*$)")


class Found(NamedTuple):
    """An answer, None where there is none, and the name of the rule that found it."""

    answer: str | None
    rule: str


def find_answer(text: str, choices: Sequence[str] = ()) -> Found:
    """Stand-in until the cascade is merged."""
    found = extract_answer(text, choices)
    return Found(found, "none" if found is None else "boxed")


def extract_answer(text: str, choices: Sequence[str] = ()) -> str | None:
    """The last `\\boxed{...}` of a text, or for multiple choice the letter of the option.

    Braces may nest. Without a box, an open question is answered by the whole text, and a
    multiple-choice one by a leading letter or the one option that the text names.

    Returns:
      None where a multiple-choice answer cannot be parsed (never a guess).
    """
    boxed = _last_box(text)
    found = (boxed if boxed is not None else text).strip()
    if not choices:
        return found
    match = _LETTER.match(found)
    if match and ord(match[1]) - ord("A") < len(choices):
        return match[1]
    named = [i for i, choice in enumerate(choices) if choice.strip().lower() in found.lower()]
    return chr(ord("A") + named[0]) if len(named) == 1 else None


def _last_box(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return None  # cut off before it closed
