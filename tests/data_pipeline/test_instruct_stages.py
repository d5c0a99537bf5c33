"""Rules of the stages: what a question may say, how sentences are fused, what an audit changes."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.instruct.chains import apply, audit, check_citations
from data_pipeline.instruct.items import (
    Audit,
    Caption,
    Chain,
    Dropped,
    Failed,
    Item,
    Reason,
    Segment,
    Step,
    Timed,
)
from data_pipeline.instruct.questions import _check_choice, _check_open, draft, judge
from data_pipeline.instruct.replies import Reply
from data_pipeline.instruct.segments import fuse, share_out
from data_pipeline.instruct.settings import Settings, from_config
from latentomni_jax.layout import InputError
from tests.data_pipeline.instruct_items import make_item

SEGMENTS = tuple(Segment(number=n, start=n - 1, end=n, text="x") for n in (1, 2, 3, 4))


class Says:
    """Stands for an `Asker` whose model always gives one reply."""

    def __init__(self, data, **settings):
        self.data, self.settings = data, Settings(**settings)

    async def __call__(self, request, seed, check=None):
        if check is not None:
            check(self.data)
        return Reply(self.data, "m")


def run(step, item, says):
    """Runs a stage that waits for nothing."""
    work = step(item, says)
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the stage waits")


@pytest.mark.parametrize(
    "text",
    ["What happens at 0:15?", "What is in <box>?", "See clip.mp4?", "As the caption says, why?"],
)
def test_a_question_does_not_speak_of_times_tags_files_or_its_source(text):
    with pytest.raises(ValueError, match="speaks of"):
        _check_open({"question": text, "answer": "the bell"})


def test_an_open_answer_has_ten_words_at_most():
    _check_open({"question": "Why does he turn?", "answer": "one two three four five six seven"})
    with pytest.raises(ValueError, match="more than 10 words"):
        _check_open({"question": "Why does he turn?", "answer": "a " * 11})


def test_options_differ():
    data = {"question": "Which sound?", "right": "A bell.", "wrong": ["a bell", "horn", "drum"]}
    with pytest.raises(ValueError, match="the same"):
        _check_choice(data)


def test_options_are_shuffled_and_the_letter_follows():
    data = {
        "question": "Which sound is it?", "right": "bell", "wrong": ["horn", "drum", "crow"],
        "reasoning_type": "causal",
    }  # fmt: skip
    letters = set()
    for n in range(40):
        item = Item(id=f"i{n}", kind="choice", caption=Caption(id="c", video="v", text="t"))
        question = run(draft, item, Says(data)).question
        assert question.answer_text == "bell"
        assert set(question.options) == {"bell", "horn", "drum", "crow"}
        letters.add(question.answer)
    assert letters == set("ABCD")


@pytest.mark.parametrize(("scores", "kept"), [((5, 5, 3), True), ((5, 4, 3), False)])
def test_the_threshold_is_met_exactly_at_13(scores, kept):
    names = ("context_utilization", "question_difficulty", "deductive_requirement")
    data = dict(zip(names, scores, strict=True)) | {
        "category": "c", "modality_dependency": "AV-Strong", "confidence": 1.0, "reason": "r",
    }  # fmt: skip
    if kept:
        assert run(judge, make_item(), Says(data)).scores.total == 13
    else:
        with pytest.raises(Dropped) as ended:
            run(judge, make_item(), Says(data))
        assert ended.value.reason is Reason.SCORE


@given(st.lists(st.text()), st.lists(st.text()), st.data())
def test_fusing_keeps_every_sentence_in_the_order_of_its_sense(seen, heard, data):
    places = st.integers(0, len(seen))
    behind = data.draw(st.lists(places, min_size=len(heard), max_size=len(heard)))
    named = fuse(
        [("s", i) for i in range(len(seen))], [("h", i) for i in range(len(heard))], behind
    )
    assert len(named) == len(seen) + len(heard)
    assert [i for kind, i in named if kind == "s"] == list(range(len(seen)))
    for kind, i in named:
        if kind == "h":
            before = named[: named.index((kind, i))]
            assert sum(sense == "s" for sense, _ in before) == behind[i]


@pytest.mark.parametrize("behind", [[], [0, 1], [3], [-1]])
def test_fusing_rejects_a_lost_sentence(behind):
    with pytest.raises(ValueError):
        fuse(["a", "b"], ["c"], behind)


def test_timed_captions_go_where_most_of_them_is():
    timed = (
        Timed(start=0, end=4, text="all of it"),
        Timed(start=1.2, end=2.2, text="most of it", sense="audio"),
        Timed(start=1.9, end=3.9, text="hardly", sense="video"),
    )
    caption = Caption(id="c", video="v", text="t", timed=timed)
    assert share_out(caption, 0, 2) == {"video": ("all of it",), "audio": ("most of it",)}
    assert share_out(caption, 2, 4) == {"video": ("all of it", "hardly"), "audio": ()}


def chain(*cited, answer="B"):
    return Chain(
        steps=tuple(Step(text=f"t{n}", segment=s) for n, s in enumerate(cited)), answer=answer
    )


def test_an_audit_removes_steps_and_moves_looks():
    edits = Audit(removed=(2,), moved=((1, 3), (4, 0)))
    done = apply(edits, chain(1, 2, None, 4, 2))
    assert [step.text for step in done.steps] == ["t0", "t2", "t3", "t4"]
    assert done.cited == (3, 2) and done.answer == "B"


def test_two_looks_in_a_row_at_one_segment_are_one():
    assert apply(Audit(moved=((2, 1),)), chain(1, 2, 3)).cited == (1, 3)
    assert apply(Audit(), chain(1, None, 1)).cited == (1, 1)


@pytest.mark.parametrize(
    ("cited", "said"), [((), "0 citations"), ((1, 2, 3, 4), "4 citations"), ((9,), "segment 9")]
)
def test_citations_are_one_to_three_of_segments_that_exist(cited, said):
    with pytest.raises(Dropped, match=said) as ended:
        check_citations(chain(*cited), SEGMENTS)
    assert ended.value.reason is Reason.CITATION
    check_citations(chain(1, None, 4), SEGMENTS)


def test_what_cannot_be_trained_with_ends_alone():
    item = make_item()
    blank = dataclasses.replace(item.question, text=" ")
    says = Says({"moved": [], "removed": [], "verdict": "keep", "same_answer": True, "reason": ""})
    assert run(audit, item, says).chain.cited
    with pytest.raises(Failed, match="cannot be trained with"):
        run(audit, dataclasses.replace(item, question=blank), says)


def test_settings_are_told_apart():
    config = {"roles": {"judge": {"colour": "x"}}, "kinds": ["open"]}
    with pytest.raises(InputError, match="colour"):
        from_config(config)
    with pytest.raises(InputError, match="no model for"):
        Settings(roles={})
    with pytest.raises(InputError, match="kinds"):
        Settings(kinds=("both",))
    with pytest.raises(InputError, match="timeout"):
        Settings(timeout=0)
