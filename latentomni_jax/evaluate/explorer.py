"""The pages that do something: questions to filter, clips to play with what latents look at.

One HTML file with all data inside, which reaches no network. Data are hostile: they are embedded as
JSON in which no `<` stands, and the page's only script, allowed by its hash, puts them in as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import mimetypes
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from latentomni_jax.evaluate.report import STYLE
from latentomni_jax.layout import InputError

Media = Literal["embed", "link", "none"]
EMBEDDED = 8 << 20  # bytes of clips that a page holds where it is not told
LONGEST = 4000  # characters of one text
_FOLDER = Path(__file__).parent


def page(
    title: str,
    sections: str,
    explored: Sequence[tuple[str, Mapping[str, Any]]],
    **data: Any,
) -> str:
    """The document.

    Args:
      sections: HTML that stands before the explorer and the list of questions.
      explored: (label, object of an explore file with the clip's "url", or None where it has none).
      data: what the list of questions shows: see `run_report.listed`.
    """
    empty = {"runs": [], "benchmarks": [], "axes": [], "questions": []}
    blocks = [_block("data", empty | data | {"explored": [label for label, _ in explored]})]
    blocks += [_block(f"explored-{i}", item) for i, (_, item) in enumerate(explored)]
    script = (_FOLDER / "report.js").read_text("utf-8")
    parts = {
        "digest": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": html.escape(title),
        "style": STYLE,
        "sections": sections,
        "data": "\n".join(blocks),
        "script": script,
    }
    template = (_FOLDER / "report.html").read_text("utf-8")
    # In one go: what stands in the parts is not looked at for places to fill.
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    return filled.encode("utf-8", "replace").decode()  # half surrogate pairs, which JSON can hold


def with_url(item: Mapping[str, Any], url: str | None) -> dict[str, Any]:
    """An explored question with the address of its clip, whose path the page need not tell."""
    return {**item, "video": os.path.basename(str(item["video"])), "url": url}


def chosen(media: Media | None, clips: Sequence[Path]) -> Media:
    """How a page has its clips where nothing is said: inside as long as they are small."""
    if media is not None:
        return media
    size = sum(clip.stat().st_size for clip in set(clips) if clip.is_file())
    return "embed" if size <= EMBEDDED else "link"


def address(clip: Path, media: Media, folder: Path) -> str | None:
    """A clip's address in a page that lies in a folder.

    Raises:
      InputError: a clip to be embedded that is not there.
    """
    if media == "none":
        return None
    if media == "link":
        return urllib.parse.quote(os.fsencode(os.path.relpath(clip, folder)))
    try:
        data = base64.b64encode(clip.read_bytes()).decode()
    except OSError as error:
        raise InputError(
            f"{clip}: the clip cannot be read ({error.strerror}); put it back, or give --media none"
        ) from error
    return f"data:{kind_of(clip)};base64,{data}"


def kind_of(clip: Path) -> str:
    """The type of a clip's file by its name, as browsers are told it."""
    guess = mimetypes.guess_type(clip.name)[0] or ""
    return guess if guess.startswith(("video/", "audio/")) else "video/mp4"


def cut(text: str) -> str:
    """A text that is not too long for a page."""
    left = len(text) - LONGEST
    return text if left <= 0 else f"{text[:LONGEST]}… ({left} more characters)"


def _block(id: str, value: Any) -> str:
    """Data in the page. Behind `<` a browser may see the end of the script that they are in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{id}">{text}</script>'
