"""What a model replied as data: JSON found in its text, cleaned, held against the schema.

`tidy` is how all text of others is cleaned, captions too.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

import jsonschema

_SURROGATES = re.compile("[\ud800-\udfff]")
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_TRIED = 100  # opening braces at which an object is looked for


def content(body: Any) -> tuple[str, str, bool]:
    """Text and model of a chat completion, and whether the text came to its end.

    Raises:
      ValueError: it is none.
    """
    try:
        choice, model = body["choices"][0], body.get("model")
        text, ended = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no chat completion") from None
    if not isinstance(text, str):
        raise ValueError("a chat completion without text")
    return text, model if isinstance(model, str) else "", ended != "length"


def parse(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of a reply, also behind thoughts, in a fence or among words.

    Raises:
      ValueError: there is none, or none that keeps to the schema; it says where.
    """
    text = text[text.rfind("</think>") + 1 :]  # thoughts may begin before the reply does
    try:
        data = _clean(_first_object(text))
        error = jsonschema.exceptions.best_match(
            jsonschema.Draft202012Validator(schema).iter_errors(data)
        )
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the reply"
        raise ValueError(f"{where}: {error.message:.200}")
    return data


def _first_object(text: str) -> Any:
    """Raises ValueError, or RecursionError."""
    begin, told = text.find("{"), None
    for _ in range(_TRIED):
        if begin < 0:
            break
        try:
            return _DECODER.raw_decode(text, begin)[0]
        except ValueError as error:
            begin, told = text.find("{", begin + 1), told or error
    if told is not None:
        raise told
    raise ValueError("no JSON object in the reply" if text.strip() else "an empty reply")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _clean(value: Any) -> Any:
    """Without control characters and halves of characters, blanks tidied, in all texts."""
    if isinstance(value, str):
        return one_line(tidy(value))
    if isinstance(value, float) and value.is_integer():
        return int(value)  # JSON schemas take 5.0 for an integer, Python does not
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    return value


def tidy(text: str) -> str:
    """Text without control characters and half characters, no blank lines, single spaces.

    Characters that turn the direction of writing are left out too: they make a page show what does
    not stand there.
    """
    text = _SURROGATES.sub("\ufffd", text)
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    text = _DIRECTIONS.sub("", text)
    return "\n".join(filter(None, map(one_line, text.splitlines())))


def one_line(text: str) -> str:
    return " ".join(text.split())
