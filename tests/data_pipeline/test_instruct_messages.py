"""Trajectories survive the layout of messages, and rows of others are read or named."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.instruct.dataset import trajectory
from data_pipeline.instruct.messages import (
    export_messages,
    from_messages,
    import_messages,
    to_messages,
)
from data_pipeline.trajectories import (
    KINDS,
    PAIR,
    DataProblem,
    Reason,
    Trajectory,
    parse_object,
    read_jsonl,
)
from latentomni_jax.__main__ import main
from latentomni_jax.layout import InputError
from latentomni_jax.media.processor import with_choices
from latentomni_jax.media.text import LATENT_TOKENS
from tests.data_pipeline.instruct_items import make_item, make_open

PIECES = ("<video>", "< video>", "<  audio>", "<", "image>", "\n", " ", "\\boxed{", "}", "A. ",
          *LATENT_TOKENS, "\ud800")  # fmt: skip
text = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=6).map("".join)
written = text.filter(str.strip)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | text
seconds = st.tuples(st.floats(0, 1e6), st.floats(1e-3, 1e6)).map(lambda x: (x[0], x[0] + x[1]))


@st.composite
def trajectories(draw):
    kind = draw(st.sampled_from([None, *KINDS]))
    pieces = draw(st.lists(text, min_size=1, max_size=4 if kind else 1))
    reasoning = PAIR.join(piece.replace(PAIR, "") for piece in pieces)
    blocks = reasoning.count(PAIR)
    assume(kind or not blocks)
    path = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    data = {
        "id": draw(written),
        "question": draw(written),
        "answer": draw(written),
        "reasoning": reasoning,
        "segments": [list(draw(seconds)) for _ in range(blocks)],
        "choices": draw(st.lists(written, max_size=4)),
        "system": draw(st.none() | text),
        "metadata": draw(st.none() | st.dictionaries(text, scalars | st.lists(scalars))),
    }
    return parse_object(data | ({kind: draw(path)} if kind else {}))


@given(trajectories())
@settings(deadline=None)
def test_any_trajectory_survives(made: Trajectory):
    row = json.loads(json.dumps(to_messages(made)))
    assert from_messages(row) == made
    texts = [message["content"] for message in row["messages"]]
    for kind in KINDS:  # as loaders count
        assert sum(text.count(f"<{kind}>") for text in texts) == len(row[f"{kind}s"])


def test_a_row_of_a_trajectory():
    made = trajectory(make_item())
    asked = with_choices(made.question, made.choices)
    assert to_messages(made) == {
        "id": made.id,
        "messages": [
            {"role": "user", "content": f"<video>{asked}"},
            {"role": "assistant", "content": f"{made.reasoning}\n\\boxed{{B}}"},
        ],
        "images": [], "videos": ["clip.mp4"], "audios": [], "segments": [[2.0, 3.5]],
        "choices": list(made.choices), "answer": "\\boxed{B}", "metadata": made.metadata,
    }  # fmt: skip


def row_of(asked, said="It is B.", **files):
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {"messages": turns, **files}


FOREIGN = {
    "the demo of LLaMA-Factory": (
        row_of("<video><audio>What is it?", videos=["demo/4.mp4"], audios=["demo/4.mp3"]),
        {"kind": "video", "path": "demo/4.mp4", "question": "What is it?", "answer": "It is B."},
    ),
    "text alone": (row_of("What?"), {"kind": None, "question": "What?"}),
    "a placeholder on its own line": (
        row_of("<image>\nWhat?", images=["a.png"]), {"kind": "image", "question": "What?"},
    ),
    "a placeholder behind": (
        row_of("What?\n<audio>", audios="a.wav"), {"path": "a.wav", "question": "What?"},
    ),
    "a box": (
        row_of("What?", "It is {the} second.\n\\boxed{\\text{B}}\n"),
        {"reasoning": "It is {the} second.", "answer": "\\boxed{\\text{B}}\n"},
    ),
    "a box amid the text": (
        row_of("What?", "\\boxed{B} or {C}"), {"reasoning": "", "answer": "\\boxed{B} or {C}"},
    ),
    "citations without a box": (
        row_of("<video>What?", f"I look.{PAIR}It is B.", videos=["a.mp4"]) | {"segments": [[0, 1]]},
        {"reasoning": f"I look.{PAIR}", "answer": "It is B.", "segments": ((0.0, 1.0),)},
    ),
    "parts": (
        row_of([{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Is <video> a tag?"}],
               [{"type": "text", "text": "It "}, {"type": "text", "text": "is."}]),
        {"kind": "video", "path": "a.mp4", "question": "Is <video> a tag?", "answer": "It is."},
    ),
    "parts with addresses": (
        row_of([{"type": "text", "text": "What?"},
                {"type": "image_url", "image_url": {"url": "file:///a/b.png"}}]),
        {"kind": "image", "path": "/a/b.png", "question": "What?"},
    ),
    "a number as id": (row_of("What?") | {"id": 7}, {"id": "7"}),
    "a system turn": (
        {"messages": [{"role": "system", "content": "Be brief."}, *row_of("What?")["messages"]]},
        {"system": "Be brief.", "id": "rows.json:3"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_rows_of_others_are_read(name):
    row, expected = FOREIGN[name]
    made = from_messages(row, "data/rows.json:3")
    assert {key: getattr(made, key) for key in expected} == expected
    assert from_messages(to_messages(made)) == made


TURN = {"role": "user", "content": "What?"}
BAD = {
    "no object": ([], "expected a JSON object with messages"),
    "no messages": ({"id": "a"}, "messages should be a list of objects, got None"),
    "several turns": ({"messages": row_of("What?")["messages"] * 2}, "expected turns of user and"),
    "no answer": ({"messages": [TURN]}, "expected turns of user and assistant"),
    "a list as role": ({"messages": [TURN | {"role": [1]}]}, "expected turns of user and"),
    "two lines as role": ({"messages": [TURN | {"role": "a\nb"}]}, "expected turns of user"),
    "a blank answer": (row_of("What?", " "), "answer should be text"),
    "a number as content": (row_of(3), "content should be text or a list of parts, got 3"),
    "no such file": (row_of("<video>What?"), "<video> has no file in videos"),
    "a file too many": (row_of("What?", videos=["a"]), "videos name more files than there are"),
    "two videos": (row_of("<video><video>What?", videos=["a", "b"]), "file, got 'a', 'b'"),
    "the sound of another": (
        row_of("<video><audio>What?", videos=["a.mp4"], audios=["b.mp3"]), "at most one file",
    ),
    "a file amid the text": (row_of("Is <video> it?", videos=["a"]), "a file amid the user's text"),
    "a file that is said": (
        row_of("What?", "See <image>", images=["a.png"]), "image 'a.png' in the turn of assistant",
    ),
    "frames": (row_of("<video>What?", videos=[["1.png"]]), "videos should be a list of paths"),
    "data": (
        row_of([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]),
        "image should be the path of a file, got 'data:",
    ),
    "an address": (row_of([{"type": "video_url", "video_url": "https://a/b"}]), "got 'https://a/b'"),
    "a sound as data": (
        row_of([{"type": "input_audio", "input_audio": {"data": "AA"}}]), "expected a part with",
    ),
    "another answer": (row_of("What?") | {"answer": "C"}, "should end with the answer, 'C'"),
    "other choices": (row_of("What?") | {"choices": ["a"]}, "should end with its choices"),
    "numbers as choices": (row_of("What?") | {"choices": [1]}, "choices should be a list"),
    "a pair too many": (
        row_of("<video>What?", f"{PAIR}a", videos=["a"]), "1 empty latent pairs in reasoning, 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_no_trajectory_says_is_named(name):
    row, message = BAD[name]
    with pytest.raises(DataProblem) as caught:
        from_messages(row, "rows.json:3")
    assert message in caught.value.detail and str(caught.value).startswith("rows.json:3:")
    assert "\n" not in str(caught.value)


def test_files_go_there_and_back(tmp_path):
    made = [trajectory(make_item("a")), trajectory(make_open("b"))]
    source, rows, back = (tmp_path / name for name in ("t.jsonl", "m.jsonl", "b.jsonl"))
    lines = [json.dumps(t.to_json()) for t in made]
    source.write_text("\n".join([lines[0], "{", lines[1]]) + "\n")
    count, (problem,) = export_messages(source, rows)
    assert count == 2 and problem.where == f"{source}:2"
    assert import_messages(rows, back) == (2, [])
    assert back.read_text().splitlines() == lines
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        import_messages(tmp_path / "none.jsonl", back)


def test_a_list_is_read_and_its_bad_rows_told(tmp_path):
    path, out = tmp_path / "rows.json", tmp_path / "out.jsonl"
    rows = [row_of("What?"), row_of("What?") | {"id": "rows.json:1"}, 3, row_of("Why?")]
    path.write_text(json.dumps(rows, indent=2))
    count, problems = import_messages(path, out)
    assert count == 2 and len(out.read_text().splitlines()) == 2
    assert [(p.where, p.reason) for p in problems] == [
        (f"{path}:2", Reason.DUPLICATE), (f"{path}:3", Reason.MALFORMED),
    ]  # fmt: skip
    path.write_text('{"messages"\n\n[]\n')
    count, problems = import_messages(path, out)
    assert count == 0 and [p.where for p in problems] == [f"{path}:1", f"{path}:3"]
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not a JSON list"):
        import_messages(path, out)


def test_the_command_goes_both_ways(tmp_path, capsys):
    made = tmp_path / "trajectories.jsonl"
    made.write_text(json.dumps(trajectory(make_item()).to_json()) + "\n{broken\n")
    rows, back = tmp_path / "rows.jsonl", tmp_path / "back.jsonl"
    assert main(["data", "messages", "--export", str(made), "--out", str(rows)]) == 0
    said = capsys.readouterr().out
    assert "1 rows to" in said and "1 left out" in said and ":2" in said
    assert main(["data", "messages", "--import", str(rows), "--out", str(back)]) == 0
    assert read_jsonl(back)[0] == read_jsonl(made)[0]
