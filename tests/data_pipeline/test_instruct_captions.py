"""Rows of caption files become captions, or failures that say what was expected."""

import itertools
import json
import math
import tracemalloc
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.av_events.captions import captions as told
from data_pipeline.av_events.world import DIALS, draw_timeline
from data_pipeline.instruct.captions import MAX_CAPTION, parse_row, read
from data_pipeline.instruct.items import Caption, Entry, Failed, Item, Reason, Timed
from data_pipeline.instruct.parsing import tidy
from data_pipeline.instruct.sources import av_events_row, daily_omni_row, timed_lines
from data_pipeline.instruct.stretches import MIN_SECONDS, stretches
from latentomni_jax.layout import InputError

PLAIN = {
    "id": "b7",
    "video": "a/b.mp4",
    "caption": "A dog barks.",
    "timed": [
        {"start": 2, "end": 3.5, "text": "It  runs."},
        {"start": 0, "end": 9, "text": "A bark.", "sense": "audio"},
    ],
    "shots": [[2, 9], [0, 2]],
    "source": "home",
    "views": 7,
    "rate": 2.5,
    "public": True,
    "tags": ["dog"],
    "note": None,
}
ASKED = {"role": "user", "content": "<video>\nDescribe the  scene."}
SAID = {"role": "assistant", "content": "A dog barks."}
PARTS = [{"type": "video", "text": None, "video": {"video_file": "a/b.mp4"}},
         {"type": "text", "text": "Describe the scene.", "video": None}]  # fmt: skip
TALKS = {
    "ms-swift": {"messages": [ASKED, SAID], "videos": ["a/b.mp4"]},
    "LatentOmni": {
        "messages": [{"role": "system", "content": "Be."}, ASKED, SAID],
        "videos": [["f0.jpg", "f1.jpg"]],
        "original_video_path": "a/b.mp4",
        "audio_in_video": ["a/b.wav"],
    },
    "AVoCaDO": {
        "messages": [
            {"role": "user", "content": PARTS},
            {"role": "assistant", "content": [{"type": "text", "text": "A dog barks."}]},
        ]
    },
    "LLaVA": {
        "conversations": [
            {"from": "human", "value": "<video>\nDescribe the scene."},
            {"from": "gpt", "value": "A dog barks."},
        ],
        "video": "a/b.mp4",
    },
}
BAD = {
    "no object": ([1], "expected a JSON object"),
    "no layout": ({"video": "a.mp4", "text": "x"}, "expected caption, messages or conversations"),
    "caption": ({"caption": 3}, "caption should be text, got 3"),
    "empty": ({"caption": " \0\n"}, "caption is empty"),
    "long": ({"caption": "x" * (MAX_CAPTION + 1)}, "at most 20000"),
    "no video": ({"video": None}, "video should be a path, got None"),
    "two videos": ({"video": None, "videos": ["a.mp4", "b.mp4"]}, "video should be a path"),
    "absolute": ({"video": "/etc/passwd"}, "relative to the videos' folder"),
    "absolute elsewhere": ({"video": "C:\\a.mp4"}, "relative to the videos' folder"),
    "share": ({"video": "\\\\host\\a.mp4"}, "relative to the videos' folder"),
    "up": ({"video": "a/../../b.mp4"}, "without '..'"),
    "up elsewhere": ({"video": "a\\..\\b.mp4"}, "without '..'"),
    "address": ({"video": "http://host/a.mp4"}, "relative to the videos' folder"),
    "NUL": ({"video": "a\0.mp4"}, "without control characters"),
    "half a character": ({"video": "\ud800.mp4"}, "without control characters"),
    "folder": ({"video": "./."}, "path to a file"),
    "long path": ({"video": "a" * 2000}, "2000 characters"),
    "id": ({"id": ["b"]}, "id should be text or a whole number"),
    "blank id": ({"id": " "}, "id should be 1 to 200 characters"),
    "id of a failure": ({"id": "line:3 of x"}, "do not begin with 'line:'"),
    "timed": ({"timed": {"start": 0}}, "timed should be a list"),
    "timed part": ({"timed": [3]}, "a timed part should be an object"),
    "backwards": ({"timed": [{"start": 2, "end": 1, "text": "x"}]}, "0 <= start < end"),
    "no end": ({"timed": [{"start": 2, "text": "x"}]}, "0 <= start < end"),
    "truth": ({"timed": [{"start": False, "end": True, "text": "x"}]}, "0 <= start < end"),
    "NaN": ({"shots": [[0, math.nan]]}, "0 <= start < end"),
    "infinite": ({"shots": [[0, math.inf]]}, "0 <= start < end"),
    "huge": ({"shots": [[0, 10**400]]}, "0 <= start < end"),
    "early": ({"shots": [[-1, 2]]}, "0 <= start < end"),
    "shot": ({"shots": ["ab"]}, "0 <= start < end"),
    "silent part": ({"timed": [{"start": 0, "end": 1, "text": ""}]}, "0 characters"),
    "no text": ({"timed": [{"start": 0, "end": 1, "text": 1}]}, "should be text"),
    "smell": ({"timed": [{"start": 0, "end": 1, "text": "x", "sense": "nose"}]}, "sense is"),
    "no talk": ({"caption": None, "messages": []}, "caption should be text"),
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_plain_row():
    found = parse_row(PLAIN, "c.jsonl:3")
    assert found == Caption(
        id="b7",
        video="a/b.mp4",
        text="A dog barks.",
        timed=(
            Timed(start=0.0, end=9.0, text="A bark.", sense="audio"),
            Timed(start=2.0, end=3.5, text="It runs."),
        ),
        shots=((0.0, 2.0), (2.0, 9.0)),
        facts={"source": "home", "views": "7", "rate": "2.5", "public": "true"},
    )
    assert found.where == "c.jsonl:3"
    assert parse_row(PLAIN | {"id": 17}, "x").id == "17"
    assert parse_row(PLAIN | {"video": "./a//b.mp4"}, "x").video == "a/b.mp4"


@pytest.mark.parametrize("name", TALKS)
def test_the_same_caption_in_what_others_publish(name):
    found = parse_row(TALKS[name], "x")
    assert (found.video, found.text, found.timed) == ("a/b.mp4", "A dog barks.", ())
    assert found.facts == {"prompt": "Describe the scene."}
    assert found.layout == ("conversations" if name == "LLaVA" else "messages")


@pytest.mark.parametrize(
    "turns", [[ASKED], [SAID, ASKED, SAID], [ASKED, {"role": ["x"], "content": "y"}]]
)
def test_a_talk_that_is_no_caption_fails(turns):
    with pytest.raises(Failed, match="expected one turn of an assistant among messages"):
        parse_row({"messages": turns, "video": "a.mp4"}, "x")


def test_ids_are_made_of_video_and_caption():
    rows = [dict(PLAIN, id=None, video=v, caption=c) for v in ("a", "b") for c in ("x", "y")]
    ids = [parse_row(row, "x").id for row in rows]
    assert len(set(ids)) == 4 and ids == [parse_row(row, "y").id for row in rows]
    assert all(id.startswith(row["video"]) for id, row in zip(ids, rows, strict=True))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_says_what_was_expected(name):
    wrong, told_ = BAD[name]
    row = PLAIN | wrong if isinstance(wrong, dict) and name != "no layout" else wrong
    with pytest.raises(Failed) as failed:
        parse_row(row, "c.jsonl:3")
    assert failed.value.reason is Reason.CAPTION and told_ in failed.value.detail
    assert failed.value.detail.startswith("c.jsonl:3: ") and failed.value.detail.isprintable()
    assert len(failed.value.detail) < 300


def test_a_file_with_everything_in_it(tmp_path):
    path = tmp_path / "c.jsonl"
    good = [PLAIN, *TALKS.values()]
    lines = [json.dumps(row).encode() for row in good]
    lines[2:2] = [b"", b"  ", b"{", b"\xff\xfe{}", lines[0], b"[" * 100_000, b"[]"]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    found = list(read(path))
    entries = [x for x in found if isinstance(x, Entry)]
    # The four talks are one caption of one video: three are used before.
    assert [x.where for x in found if isinstance(x, Caption)] == [f"{path}:1", f"{path}:2"]
    numbers = [5, 6, 7, 8, 9, 10, 11, 12]
    assert [x.id for x in entries] == [f"line:{n} of {path}" for n in numbers]
    assert all((x.fate, x.stage, x.reason) == ("failed", "captions", Reason.CAPTION)
               for x in entries)  # fmt: skip
    assert all(x.detail.startswith(f"{path}:{n}: ") for x, n in zip(entries, numbers, strict=True))
    twice = [n for n, x in zip(numbers, entries, strict=True) if "was used before" in x.detail]
    assert twice == [7, 10, 11, 12]
    seen = set()
    first = [list(read(path, seen)) for _ in range(2)]
    assert first[0] == found and all(isinstance(x, Entry) for x in first[1])
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read(tmp_path / "none.jsonl")


def test_memory_is_that_of_a_row(tmp_path):
    path = tmp_path / "c.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(PLAIN).encode() + b"\n")
        for _ in range(40):
            file.write(b" " * (1 << 20))
        file.write(b"\n" + json.dumps(PLAIN | {"id": "c"}).encode())
    tracemalloc.start()
    found = list(read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(x) for x in found] == [Caption, Entry, Caption] and peak < 8 << 20
    assert "expected at most 1048576 bytes in a line" in found[1].detail


_TEXTS = st.text(st.characters(), max_size=12)  # with halves of characters
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from([*PLAIN, "messages", "conversations", "videos", "original_video_path"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([PLAIN, *TALKS.values()]),
                  st.dictionaries(_KEYS | _TEXTS, _VALUES, max_size=3)),
        max_size=5,
    )
)  # fmt: skip
def test_whatever_a_row_is_it_ends_in_one_way(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "c.jsonl"
    found = list(read(write(path, [row | changed for row, changed in rows])))
    assert len(found) == len(rows) == len({x.id for x in found})
    for one in found:
        if isinstance(one, Entry):
            assert one.detail.isprintable() and len(one.detail) < 500
            continue
        assert one.text == tidy(one.text) and 0 < len(one.text) <= MAX_CAPTION
        assert ".." not in one.video.split("/") and not one.video.startswith("/")
        assert all(0 <= t.start < t.end < math.inf and t.text == tidy(t.text) for t in one.timed)
        assert [t.start for t in one.timed] == sorted(t.start for t in one.timed)
        assert all(isinstance(v, str) for v in one.facts.values())
        item = Item(id=one.id, kind="open", caption=one)
        again = json.loads(json.dumps(item.to_json(), ensure_ascii=False).encode())
        assert Item.from_json(again) == item


@pytest.mark.parametrize("depth", [10, 500, 900, 1100, 5000, 20_000, 60_000])
def test_deep_rows_end_too(tmp_path, depth):
    path = tmp_path / "c.jsonl"
    inner = "[" * depth + "]" * depth
    for key in ("caption", "tags", "messages", "timed"):
        path.write_text(json.dumps(PLAIN | {key: "@"}).replace('"@"', inner))
        assert len(list(read(path))) == 1


@example("a\x00b\x1b[31m\u202e c\x85\x1c\x1f\n\n d\u2028e \ud83d\ufeff")
@given(st.text(st.characters(), max_size=40))
def test_text_becomes_clean_and_stays_so(text):
    found = tidy(text)
    assert tidy(found) == found == found.strip()
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in found.replace("\n", ""))
    assert not any(x in found for x in ("  ", "\n\n", " \n", "\n "))
    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    gone = [c for c in text if unicodedata.category(c) in ("Cc", "Cs") or c in turning]
    kept = [c for c in text if not c.isspace() and c not in gone]
    assert [c for c in found if not c.isspace() and c != "\ufffd"] == [
        c for c in kept if c != "\ufffd"
    ]


@pytest.mark.parametrize("dial", DIALS)
def test_av_events_are_captions(dial):
    for seed, kind in itertools.product(range(10), ("plain", "covered")):
        timeline = draw_timeline(np.random.default_rng(seed), DIALS[dial], kind)
        record = {"id": f"t-{seed}", "path": "clips/t.mp4", "timeline": timeline}
        row = av_events_row(record | {"captions": json.loads(json.dumps(told(timeline)))})
        found = parse_row(json.loads(json.dumps(row)), "x")
        assert (found.id, found.video) == (f"t-{seed}", "clips/t.mp4")
        assert found.shots == tuple((m.start, m.end) for m in timeline.moments)
        for sense, parts in told(timeline).items():
            given_ = [(t.start, t.end, t.text) for t in found.timed if t.sense == sense]
            assert given_ == sorted(parts)
            assert all(text in found.text for _, _, text in parts)
        assert len(stretches(timeline.seconds, found.shots, 5.0)) == len(timeline.moments)


def test_lines_with_times():
    text = 'Intro.\n0-10s: A man\nspeaks.\n\n 10 - 12.5 s : "It\'s 3-4s: now"\n9-8s: on.\n'
    assert timed_lines(text, "audio") == (
        Timed(start=0.0, end=10.0, text="A man speaks.", sense="audio"),
        Timed(start=10.0, end=12.5, text='"It\'s 3-4s: now" 9-8s: on.', sense="audio"),
    )
    assert timed_lines("nothing") == ()


def test_a_folder_of_daily_omni(assets):
    for folder in sorted((assets / "clips/daily_omni").iterdir()):
        found = parse_row(daily_omni_row(folder), "x")
        assert (assets / "clips/daily_omni" / found.video).is_file() and found.id == folder.name
        spans = [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]
        for sense in ("video", "audio"):
            parts = [t for t in found.timed if t.sense == sense]
            assert [(t.start, t.end) for t in parts] == spans
            assert all(t.text.startswith("In this section") and t.text in found.text
                       for t in parts)  # fmt: skip


def test_no_folder_of_daily_omni(tmp_path):
    folder = tmp_path / "abc"
    folder.mkdir()
    with pytest.raises(InputError, match=r"qa\.json: no such file"):
        daily_omni_row(folder)
    (folder / "abc_video.mp4").write_bytes(b"")
    for text, message in (
        ("{", "expected captions"),
        ("[]", "expected captions"),
        ('{"captions": {"video_consistent_captions": "0-1s: x"}}', "audio_revised_captions"),
        (
            '{"captions": {"video_consistent_captions": "0-1s: x", "audio_revised_captions": 3}}',
            "of audio, found none",
        ),
    ):
        (folder / "qa.json").write_text(text)
        with pytest.raises(InputError, match=message):
            daily_omni_row(folder)


_TIMES = st.floats(0, 100)


@given(
    st.floats(0.01, 90),
    st.lists(st.tuples(_TIMES, _TIMES), max_size=8),
    st.floats(0.5, 20),
)
@example(15.0, [], 5.0)
@example(0.3, [], 0.1)  # floor(0.3 / 0.1) is 2
def test_pieces_cover_the_clip(duration, shots, seconds):
    pieces = stretches(duration, shots, seconds)
    assert pieces[0][0] == 0 and pieces[-1][1] == duration
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    lengths = [end - start for start, end in pieces]
    if shots:
        assert {start for start, _ in pieces[1:]} <= {start for start, _ in shots}
        assert len(pieces) == 1 or min(lengths) >= MIN_SECONDS
        for start, _ in shots:  # what was passed over is near an edge or outside
            near = min(abs(start - edge) for edge in (0, duration, *(p[0] for p in pieces)))
            assert start >= duration or near < MIN_SECONDS
    else:
        np.testing.assert_allclose(lengths[:-1], seconds, rtol=1e-9)
        assert lengths[-1] < 1.25 * seconds * (1 + 1e-9)
        assert len(pieces) == 1 or lengths[-1] >= 0.25 * seconds * (1 - 1e-9)


def test_pieces_of_one_length_and_of_shots():
    assert stretches(12.0, (), 5.0) == ((0.0, 5.0), (5.0, 10.0), (10.0, 12.0))
    assert stretches(11.0, (), 5.0) == ((0.0, 5.0), (5.0, 11.0))
    assert stretches(1.0, (), 5.0) == ((0.0, 1.0),)
    gap, overlap, outside = (1.0, 2.0), (3.0, 6.0), (20.0, 30.0)
    assert stretches(10.0, [(5.0, 9.0), outside, overlap, gap], 5.0) == (
        (0.0, 1.0),
        (1.0, 3.0),
        (3.0, 5.0),
        (5.0, 10.0),
    )


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_no_length(value):
    for arguments in ((value, (), 5.0), (5.0, (), value)):
        with pytest.raises(InputError, match="more than 0 seconds"):
            stretches(*arguments)
