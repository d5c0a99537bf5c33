"""The pages that do something: questions to filter, clips to play with what latents look at.

One HTML file with all data inside, which reaches no network. Data are hostile: they are embedded as
JSON in which no `<` stands, and the page's only script, allowed by its hash, puts them in as text.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from latentomni_jax.evaluate.pages.report import STYLE
from latentomni_jax.evaluate.runs import Run
from latentomni_jax.evaluate.scores import outcome
from latentomni_jax.layout import InputError

Media = Literal["embed", "link", "none"]
EMBEDDED = 8 << 20  # bytes of clips that a page holds where it is not told
LONGEST = 4000  # characters of one text
KINDS = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm",
    ".mkv": "video/x-matroska", ".avi": "video/x-msvideo", ".wav": "audio/wav",
    ".mp3": "audio/mpeg", ".m4a": "audio/mp4", ".aac": "audio/aac", ".flac": "audio/flac",
    ".ogg": "audio/ogg", ".opus": "audio/ogg",
}  # fmt: skip
_FOLDER = Path(__file__).parent


def page(
    title: str,
    sections: str,
    explored: Sequence[tuple[str, Mapping[str, Any], str | None]],
    **data: Any,
) -> str:
    """The document.

    Args:
      sections: HTML that stands before the explorer and the list of questions.
      explored: (label, object of an explore file, address of its clip or None).
      data: what the list of questions shows: see `listed`.
    """
    empty = {"runs": [], "benchmarks": [], "axes": [], "questions": []}
    urls = list(dict.fromkeys(url for _, _, url in explored if url is not None))
    looks = [(label, None if url is None else urls.index(url)) for label, _, url in explored]
    blocks = [_block("data", empty | data | {"explored": looks})]
    blocks += [_block(f"clip-{i}", url) for i, url in enumerate(urls)]
    blocks += [_packed(f"explored-{i}", item) for i, (_, item, _) in enumerate(explored)]
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


def listed(runs: Sequence[Run], explored: Mapping[tuple[str, str | None], int]) -> dict[str, Any]:
    """What the list of questions shows.

    Args:
      explored: (run, id of a question) -> its place in the explorer.

    Returns:
      runs, benchmarks, axes: names. questions: each once, with `given`, what every run has of it.
    """
    questions: dict[Any, dict[str, Any]] = {}
    for place, run in enumerate(runs):
        for key, line in run.by_question().items():
            one = questions.setdefault((run.benchmark, key), {"given": [None] * len(runs)})
            asked = {
                "id": str(line["id"] if line["id"] is not None else f"line {line.get('line')}"),
                "benchmark": run.title,
                "video": line.get("video") or "",
                "question": cut(line.get("question") or ""),
                "axes": line.get("axes") or {},
            }
            if "error" in line:  # what it says of the question may be less than another run's
                questions[run.benchmark, key] = one = asked | one
            else:
                one |= asked
            one["given"][place] = _given(line, explored.get((run.name, line["id"])))
    return {
        "runs": [run.name for run in runs],
        "benchmarks": list(dict.fromkeys(run.title for run in runs)),
        "axes": list(dict.fromkeys(axis for one in questions.values() for axis in one["axes"])),
        "questions": list(questions.values()),
    }


def _given(line: dict[str, Any], explored: int | None) -> dict[str, Any]:
    if "error" in line:
        return {"outcome": "failed", "error": cut(line["error"]), "choices": [], "explored": None}
    prompt = sum(line["prompt_tokens"].values())
    cut_off = "" if line["finished"] else " (cut off by the limit)"
    return {
        "outcome": outcome(line),
        "answer": line["answer"],
        "expected": line["expected"],
        "rule": line["rule"],
        "choices": [cut(choice) for choice in line["choices"]],
        "text": cut(line["text"]),
        "tokens": f"{line['tokens']}{cut_off}, of them {line['latent_steps']} in "
        f"{line['latent_blocks']} latent blocks; {prompt} in the prompt",
        "explored": explored,
    }


def chosen(media: Media | None, clips: Sequence[Path]) -> Media:
    """How a page has its clips where nothing is said: inside as long as they are small."""
    if media is not None:
        return media
    size = sum(clip.stat().st_size for clip in set(clips) if clip.is_file())
    return "embed" if size <= EMBEDDED else "link"


def address(clip: Path, media: Media, folder: Path) -> str | None:
    """A clip's address in a page that lies in a folder.

    Raises:
      InputError: a clip to be embedded that is not there, or a file that is none.
    """
    if media == "none":
        return None
    kind = kind_of(clip)
    if media == "link":
        return urllib.parse.quote(os.fsencode(os.path.relpath(clip, folder)))
    try:
        data = base64.b64encode(clip.read_bytes()).decode()
    except OSError as error:
        raise InputError(
            f"{clip}: the clip cannot be read ({error.strerror}); put it back, or give --media none"
        ) from error
    return f"data:{kind};base64,{data}"


def kind_of(clip: Path) -> str:
    """The type of a clip's file by its name, as browsers are told it.

    Raises:
      InputError: a name that is none of a clip's: a run may be of somebody else, and name any file
        of this machine.
    """
    if kind := KINDS.get(clip.suffix.lower()):
        return kind
    raise InputError(f"{clip}: is no clip by its name; expected one of {' '.join(KINDS)}")


def cut(text: str) -> str:
    """A text that is not too long for a page."""
    left = len(text) - LONGEST
    return text if left <= 0 else f"{text[:LONGEST]}… ({left} more characters)"


def _block(id: str, value: Any) -> str:
    """Data in the page. Behind `<` a browser may see the end of the script that they are in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{id}">{text}</script>'


def _packed(id: str, item: Mapping[str, Any]) -> str:
    """An explored question in the page, unpacked when it is looked into: its maps are mostly dark.
    It does not tell where the clip lies on this machine."""
    text = json.dumps({**item, "video": os.path.basename(item["video"])}, allow_nan=False)
    data = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    return f'<script type="application/octet-stream" id="{id}">{data}</script>'
