"""Answers are read out of text, and never guessed."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentomni_jax.media.extract import NOTHING, extract_answer, find_answer
from tests.evaluate.golden_answers import CHOICES, verdicts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First the bell, then ... \boxed{B}", "B"),
        (r"\boxed{A}, no: \boxed{C}", "C"),
        (r"\boxed{(D)}", "D"),
        (r"\boxed{B. a cat}", "B"),
        (r"\boxed{\text{C}}", "C"),
        (r"\boxed{a bell}", "D"),
        ("B", "B"),
        ("C) a car", "C"),
        ("(A)", "A"),
        ("It must be a cat.", "B"),
        ("A man walks by", None),  # the article is no answer
        ("a dog or a cat", None),
        (r"\boxed{E}", None),  # there is no option E
        (r"\boxed{B", None),  # cut off
        ("", None),
    ],
)
def test_multiple_choice(text, answer):
    assert extract_answer(text, CHOICES) == answer


def test_golden_outputs():
    golden = verdicts("cascade")
    assert len(golden) >= 60
    wrong = [(text, found) for text, found in _found(golden) if found.answer != dict(golden)[text]]
    assert not wrong
    assert all((found == NOTHING) == (found.answer is None) for _, found in _found(golden))


def _found(golden):
    return [(text, find_answer(text, CHOICES)) for text, _ in golden]


@pytest.mark.parametrize(
    ("rule", "texts"),
    [
        ("boxed", [r"\boxed{b}", r"Answer: \boxed{a cat}", r"\boxed{B} Not A.", r"/ \boxed {B}"]),
        ("stated", [r"\boxed{A} Answer: B", "the correct option is (b), I think", "答案是B"]),
        ("leading letter", ["B", "(b)", "B. a dog", "B\nwhich is a cat"]),
        ("lone letter", ["Option B", "It is B, a dog", "not A but B"]),
        ("named option", ["a cat", "A cat!", "The CAT? It is a   cat"]),
    ],
)
def test_rules(rule, texts):
    assert [find_answer(text, CHOICES) for text in texts] == [("B", rule)] * len(texts)


def test_options_are_told_apart():
    choices = ("red", "dark red", "Vitamin C", "10", "1", "A", "red")
    for text, letter in (
        ("It was dark red.", "B"),
        ("They sell vitamin C", "C"),  # no letter
        ("There were 10", "D"),
        ("There was 1.", "E"),
        ("reddish", None),
        (r"\boxed{A}", "A"),  # the letter, not the option of that text
        (r"\boxed{10}", "D"),
        ("red", None),  # two options read so
        (r"\boxed{red}", None),
        ("It is G", "G"),
        ("I think so", None),
        ("10.5 of them", None),
        (r"\boxed{-10}", None),
        (r"\boxed{ Dark  red. }", "B"),
    ):
        assert extract_answer(text, choices) == letter, text
    assert extract_answer(r"\boxed{}", ("+", "-")) is None
    assert extract_answer(r"\boxed{+}", ("+", "-")) == "A"
    assert extract_answer("Answer: I", ["x"] * 9) == "I"
    assert extract_answer("I saw a man and I left", ["x"] * 9) is None
    assert extract_answer("Answer: A tall man", ("tall man", "man")) == "A"
    assert extract_answer("Answer: A tall man", ("a small man", "a tall man")) == "B"


ENDINGS = {
    r"\boxed{B}": "B",
    r"\boxed{\text{(c)}}": "C",
    r"\boxed{a bell}": "D",
    r"\boxed{E}": None,
    "Answer: B": "B",
    "Answer: (c)": "C",
    "**Answer:** D.": "D",
    "The answer is A.": "A",
    "Answer: B. a cat": "B",
    "Answer: A or B": None,
}
NASTY = [
    *("\\boxed{A}", "\\boxed{", "\\", "{", "}", "<think>", "</think>", "\\text{", "$", "*", "`"),
    *("Answer: C", "the answer is ", "answer to ", "A or ", "not ", "isn't ", "I choose ", "C. "),
    *("答案是", "不", "选C", "a dog", "a cat ", "assistant", "\n", "İ", "ﷺ", "é"),
]


@given(
    st.lists(st.one_of(st.text(max_size=20), st.sampled_from(NASTY)), max_size=6).map("".join),
    st.sampled_from(sorted(ENDINGS)),
)
def test_the_verdict_does_not_depend_on_what_stands_before_the_final_answer(before, ending):
    assert extract_answer(ending, CHOICES) == ENDINGS[ending]
    assert find_answer(before + ending, CHOICES) == find_answer(ending, CHOICES)


@given(st.text(), st.lists(st.text(), max_size=30))
def test_any_text_has_a_verdict(text, choices):
    answer, rule = find_answer(text, choices[:26])
    if choices:
        assert answer is None or ord(answer) - ord("A") < len(choices)
        assert (answer is None) == (rule == "none")
    else:
        assert answer == text.strip() and rule == "text"


@pytest.mark.parametrize(
    "piece",
    [
        *("x", " ", "\n", "(", "A ", "B. ", "\\boxed{", "{", "}", "\\text{", "a dog ", "_", "*"),
        *(
            "answer ",
            "answer: ",
            "answer to ",
            "Answer: B, ",
            "best option ",
            "答案是",
            "not ",
            "选",
        ),
    ],
)
def test_long_texts_are_fast(piece):
    text = piece * (100_000 // len(piece))
    started = time.process_time()
    assert find_answer(f"{text}\nAnswer: C", CHOICES) == ("C", "stated")
    find_answer(text, CHOICES)
    find_answer(f"\\boxed{{{text}}}", CHOICES)
    assert time.process_time() - started < 10  # quadratic would be hours


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{the red \textbf{ball}} it is", r"the red \textbf{ball}"),
        ("  just text ", "just text"),
        ("<think>a hat?</think> a cap", "a cap"),
    ],
)
def test_open_questions(text, answer):
    assert extract_answer(text) == answer
