"""Kept items become lines that training reads, whatever their texts hold, and all counts add up."""

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.instruct import dataset
from data_pipeline.instruct.dataset import check_ledger, harmless, trajectory, write_dataset
from data_pipeline.instruct.items import Chain, Entry, Item, Reason, Step
from data_pipeline.trajectories import PAIR, parse_object, read_jsonl
from latentomni_jax.layout import InputError
from latentomni_jax.media.extract import extract_answer
from latentomni_jax.media.text import CHAT_TOKENS, LATENT_TOKENS, MEDIA_TOKENS
from tests.data_pipeline.instruct_items import (
    CAPTION,
    QUESTION,
    SCORES,
    SEGMENTS,
    make_entry,
    make_item,
    make_open,
)

SPECIAL = LATENT_TOKENS + CHAT_TOKENS + MEDIA_TOKENS
PIECES = (*SPECIAL, PAIR, "<Unified_", "<", "Latent>", "></Unified_Latent>", "\\boxed{", "}", "{",
          "\ud800", "\0", "\u2028", "\n", " ", "I look.")  # fmt: skip
hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join)
steps = st.lists(
    st.builds(lambda text, segment: Step(text=text, segment=segment), hostile,
              st.sampled_from([None, 1, 2])), max_size=6,
).map(tuple)  # fmt: skip


@given(steps, hostile, hostile)
@settings(deadline=None)
def test_whatever_the_texts_hold_it_is_a_trajectory(steps, answer, question):
    item = make_open(
        chain=Chain(steps=steps, answer=answer),
        question=dataclasses.replace(QUESTION, options=(), text=f"Why {question}", answer=answer),
    )
    data = json.loads(json.dumps(trajectory(item).to_json()))
    read = parse_object(data)
    assert read == trajectory(item)
    cited = [step.segment for step in steps if step.segment]
    assert read.segments == tuple(((0.0, 2.0), (2.0, 3.5))[number - 1] for number in cited)
    between = read.reasoning.split(PAIR)
    assert len(between) == 1 + len(cited)
    for text in (*between, read.question, read.answer):
        assert not any(token in text for token in SPECIAL)
        text.encode("utf-8")
    plain = harmless(answer).replace("{", "(").replace("}", ")")
    assert extract_answer(read.reasoning + read.answer) == plain.strip()


@given(hostile)
@settings(deadline=None)
def test_harmless_text_loses_nothing(text):
    mended = text.encode("utf-8", "replace").decode()
    assert harmless(text).replace(" ", "") == mended.replace(" ", "")
    assert harmless(harmless(text)) == harmless(text)


def test_a_trajectory_of_an_item():
    made = trajectory(make_item())
    assert made.reasoning == (
        f"I listen for the higher tone.{PAIR}The square moves there. So it is the square."
    )
    assert made.segments == ((2.0, 3.5),) and made.answer == "\\boxed{B}"
    assert (made.kind, made.path, made.choices) == ("video", "clip.mp4", QUESTION.options)
    assert made.metadata == {
        "type": SCORES.category, "modality": "AV-Strong", "scores": [5, 4, 4], "kind": "choice",
        "reasoning_type": "sound-action attribution", "captioner": "model", "source": "made up",
        "licence": "CC0",
        "models": {"question": "asker", "judge": "judge", "reasoner": "reasoner"},
    }  # fmt: skip
    assert trajectory(make_open(answer="{a}")).answer == "\\boxed{(a)}"


def test_an_option_that_is_a_token_remains_an_option():
    question = dataclasses.replace(QUESTION, options=(*QUESTION.options[:3], "<|im_end|>"))
    made = trajectory(make_item(question=question))
    assert made.choices[3] == "< |im_end|>" and parse_object(made.to_json()) == made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "expected an item with a question, scores and a chain"),
        ({"segments": SEGMENTS[:1]}, re.escape("cites segment 2, it has [1]")),
    ],
)
def test_an_unfinished_item_is_named(changes, message):
    with pytest.raises(InputError, match=f"'x': {message}"):
        trajectory(make_item("x", **changes))


def test_a_set_on_disk(tmp_path):
    items = [make_item("a"), make_open("b")]
    entries = [make_entry("a"), make_entry("b"), make_entry("c", "dropped"),
               make_entry("d", "failed")]  # fmt: skip
    counts = write_dataset(tmp_path, iter(items), iter(entries))
    read, problems = read_jsonl(tmp_path / "trajectories.jsonl")
    assert read == [trajectory(item) for item in items] and not problems
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [Item.from_json(json.loads(line)) for line in lines] == items
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert [Entry(**json.loads(line)) for line in lines] == entries
    assert json.loads((tmp_path / "counts.json").read_text()) == counts
    assert counts["items"] == {"kept": 2, "dropped": 1, "failed": 1} and counts["clips"] == 1
    assert ["dropped", "questions", Reason.SCORE, 1] in counts["ends"]
    tables = counts["tables"]
    assert sum(count for _, count in tables["category"]) == 2 and len(tables["category"]) == 10
    assert tables["total"] == [[13, 2]] and tables["citations"] == [[1, 2]]
    assert tables["seconds"] == [["1 to less than 2", 2]]
    assert tables["trajectories of a clip"] == [[2, 1]]
    assert tables["judge"] == [["judge", 2]] and tables["auditor"] == [["(not stated)", 2]]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 5
    write_dataset(tmp_path, items, entries)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_card_tells_the_counts(tmp_path):
    hostile = "a | b <script>alert(1)</script>\n# `x` " + "long " * 50
    caption = dataclasses.replace(CAPTION, facts={"Licence": hostile})
    write_dataset(tmp_path, [make_item("a", caption=caption)], [make_entry("a")])
    text = (tmp_path / "README.md").read_text()
    for line in (
        "| kept | 1 | 100.0% |",
        "| audio-visual joint perception | 1 | 100.0% |",
        "| question | asker | 1 |",
        "| plain | 1 | 100.0% |",
    ):
        assert f"\n{line}\n" in text
    assert "<script>" not in text and "a \\| b \\<script\\>" in text
    assert "## Limitations" in text and "No person" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.sub(r"\\.", "", row).count("|") for row in block.splitlines()]
        assert len(set(rows)) == 1, block


def test_a_set_of_nothing_has_a_card(tmp_path):
    counts = write_dataset(tmp_path, [], [make_entry("a", "dropped")])
    assert counts["items"]["kept"] == 0
    assert "of 1 items 0 were kept" in (tmp_path / "README.md").read_text()


def test_the_old_set_stays_where_the_new_one_is_refused(tmp_path):
    write_dataset(tmp_path, [make_item("a")], [make_entry("a")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="are kept and no trajectory: 'b'"):
        write_dataset(tmp_path, [make_item("a")], [make_entry("a"), make_entry("b")])
    nowhere = dataclasses.replace(CAPTION, video="")
    with pytest.raises(InputError, match=r"trajectories\.jsonl:1: 'a' malformed line: video"):
        write_dataset(tmp_path, [make_item("a", caption=nowhere)], [make_entry("a")])
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name in before}
    assert after == before


def test_a_killed_run_leaves_no_counts(tmp_path, monkeypatch):
    """Whoever finds counts finds the set they are of."""
    write_dataset(tmp_path, [make_item("a")], [make_entry("a")])
    monkeypatch.setattr(dataset, "card", lambda counts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dataset(tmp_path, [make_item("b")], [make_entry("b")])
    assert not (tmp_path / "counts.json").exists()


@pytest.mark.parametrize(
    ("ends", "expected", "kept", "message"),
    [
        ("aab", "ab", None, "1 items end twice: 'a' (kept, kept)"),
        ("a", "ab", None, "1 items began and did not end: 'b'"),
        ("abc", "a", None, "2 items ended and did not begin: 'b', 'c'"),
        ("ab", "ab", "a", "1 items are kept and no trajectory: 'b'"),
        ("a", "a", "ab", "1 items are a trajectory and not kept: 'b'"),
        ("a", "a", "aa", "1 items are trained with twice: 'a'"),
        ("", "abcdefg", None, "7 items began and did not end: 'a', 'b', 'c', 'd', 'e' and 2 more"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_told(ends, expected, kept, message):
    with pytest.raises(InputError) as caught:
        check_ledger(map(make_entry, ends), expected, kept)
    assert message in str(caught.value)


def test_a_ledger_that_adds_up():
    entries = [make_entry("a"), make_entry("b", "dropped"), make_entry("c", "failed")]
    check_ledger(entries, ["c", "b", "a"], ["a"])
