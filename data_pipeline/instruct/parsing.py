"""What a model replied as data: JSON found in its text, cleaned, held against the schema."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema


def content(body: Any) -> tuple[str, str]:
    """Text and model of a chat completion. Raises ValueError."""
    try:
        choice = body["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no chat completion") from None
    if not isinstance(text, str):
        raise ValueError("a reply without text")
    if ended == "length":
        raise ValueError("a reply that was cut off: more max_tokens may help")
    model = body.get("model")
    return text, model if isinstance(model, str) else ""


def parse(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of a reply, also behind thoughts, in a fence or among words.

    Raises:
      ValueError: there is none, or none that keeps to the schema; it says where.
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    begin = text.find("{")
    if begin < 0:
        raise ValueError("no JSON object in the reply" if text.strip() else "an empty reply")
    try:
        data, _ = _DECODER.raw_decode(text, begin)
        data = _clean(data)
        error = jsonschema.exceptions.best_match(
            jsonschema.Draft202012Validator(schema).iter_errors(data)
        )
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the reply"
        raise ValueError(f"{where}: {error.message:.200}")
    return data


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _clean(value: Any) -> Any:
    """Without control characters and halves of characters, blanks tidied, in all texts."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    return value


def clean_text(text: str) -> str:
    """One line of printable text."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
