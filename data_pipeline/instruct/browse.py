"""A page to look through a data set: each clip with its question, segments, reasoning and audit.

One HTML file with the texts inside, which plays the clips from where they are and reaches no
network. Texts are hostile: they are embedded as JSON in which no `<` stands, and the page puts them
in as text, never as markup.
"""

from __future__ import annotations

import itertools
import json
import os
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.instruct.dataset import COUNTS, LEDGER, SAMPLES
from data_pipeline.shards import write_text
from latentomni_jax.layout import InputError

PAGE = "browse.html"
# Of kept items, and again of those that ended otherwise: as much as a browser shows at once.
LIMIT = 2000
SIZE = 1 << 26  # characters
LONGEST = 4000  # characters of one text
_TEMPLATE = Path(__file__).with_name(PAGE)
_PLACE = "{{data}}"  # in the template


def write_page(out: Path, videos: Path) -> Path:
    """Writes the page of a data set, the same bytes for the same set.

    It holds the first samples, `LIMIT` or as many as `SIZE` allows, and so of the items that were
    dropped or failed; it says so where there are more. Longer texts than `LONGEST` characters are
    cut, with a note.

    Args:
      out: of `dataset.write_dataset`. videos: folder of the clips, which the page names relative to
        `out`: it finds them as long as both stay where they are to each other.

    Returns:
      Path of the page.

    Raises:
      InputError: `out` holds no complete data set.
    """
    if not (out / COUNTS).is_file():
        raise InputError(f"{out}: no complete data set; expected {COUNTS} in it")
    counts = _read((out / COUNTS).read_text(encoding="utf-8"))
    samples = (
        {**_cut(item), "url": _url(out, videos / item["caption"]["video"])}
        for item in _lines(out / SAMPLES)
    )
    ended = (_cut(entry) for entry in _lines(out / LEDGER) if entry["fate"] != "kept")
    data = (
        f'{{"counts": {json.dumps(counts["items"])}, "samples": [{", ".join(_first(samples))}], '
        f'"ended": [{", ".join(_first(ended))}]}}'
    )
    # Behind `<` a browser may see the end of the script that the data are in.
    embedded = data.replace("<", "\\u003c")
    page = _TEMPLATE.read_text(encoding="utf-8")
    write_text(out / PAGE, page.replace(_PLACE, embedded))
    return out / PAGE


def _first(rows: Iterable[Any]) -> Iterator[str]:
    """The JSON of the rows for which there is room."""
    size = 0
    for row in itertools.islice(rows, LIMIT):
        text = json.dumps(row)
        size += len(text)
        if size > SIZE:
            return
        yield text


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as lines:
        yield from map(_read, lines)


def _read(text: str) -> Any:
    """JSON as browsers know it: Python's NaN and Infinity become null."""
    return json.loads(text, parse_constant=lambda name: None)


def _cut(value: Any) -> Any:
    """The same value with its long texts cut."""
    if isinstance(value, str):
        left = len(value) - LONGEST
        return value if left <= 0 else f"{value[:LONGEST]}… ({left} more characters)"
    if isinstance(value, list):
        return [_cut(one) for one in value]
    if isinstance(value, dict):
        return {name: _cut(one) for name, one in value.items()}
    return value


def _url(out: Path, video: Path) -> str:
    """Address of a clip relative to the page; no character of it is taken for another scheme."""
    return urllib.parse.quote(os.fsencode(os.path.relpath(video, out)))
