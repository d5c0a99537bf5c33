"""Annotations of five benchmarks are read, dirt and all."""

import csv
import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.trajectories import DataProblem, Trajectory
from latentomni_jax.evaluate import benchmarks
from latentomni_jax.evaluate.benchmarks.base import counts
from latentomni_jax.layout import InputError
from latentomni_jax.media.processor import LETTERS
from tests.evaluate import annotations

NAMES = ("daily_omni", "lvomnibench", "omnivideobench", "video_mme", "worldsense")


def read(name, path):
    return benchmarks.get(name).read(path)


def counted(name, path):
    return counts(benchmarks.get(name), read(name, path))


def problems(reading):
    return [str(one) for one in reading.questions if isinstance(one, DataProblem)]


def test_benchmarks_are_found_and_complete():
    assert ("av_events", *NAMES) == benchmarks.NAMES
    for name in NAMES:
        benchmark = benchmarks.get(name)
        assert benchmark.name == name and set(benchmark.styles) == {"own", "boxed"}
        assert benchmark.published["LatentOmni"] > 0
        assert (benchmark.view, benchmark.needs_sound) == (
            ("video", False) if name == "video_mme" else ("both", True)
        )
        assert benchmark.styles["own"].text_first == (name == "daily_omni")
    with pytest.raises(InputError, match="no benchmark 'mmlu'; expected one of av_events, d"):
        benchmarks.get("mmlu")


# ---------------------------------------------------------------------------- Daily-Omni


def daily_omni_row(**changes):
    row = {
        "Question": "What is heard?",
        "Choice": ["A. a dog", "B. a cat", "C. a car", "D. a bell"],
        "Answer": "B",
        "video_id": "x1",
        "Type": "Inference",
        "video_category": "Music",
        "video_duration": "30s",
    } | changes
    return {key: value for key, value in row.items() if value is not None}


def test_daily_omni_as_it_is(assets):
    path = assets / "benchmarks/daily_omni/qa.json"
    raw = json.loads(path.read_text())
    assert len({frozenset(row) for row in raw}) == 3
    found = counted("daily_omni", path)
    assert (found.questions, found.videos) == (1197, 684)
    assert (found.refused, found.repaired) == (0, 0)
    assert found.answers == {"A": 278, "B": 318, "C": 306, "D": 295}
    assert found.axes["Type"] == {
        "Event Sequence": 306,
        "AV Event Alignment": 238,
        "Context understanding": 193,
        "Reasoning": 175,
        "Inference": 154,
        "Comparative": 131,
    }
    assert found.axes["video_duration"] == {"30s": 647, "60s": 550}
    categories = found.axes["video_category"]
    assert len(categories) == 15
    assert categories["Entertainment"] == 217 and categories["Nonprofits & Activism"] == 14
    questions = read("daily_omni", path).questions
    for number, (row, question) in enumerate(zip(raw, questions, strict=True), start=1):
        assert question.where == f"{path}:{number}"
        assert question.metadata["options"] == row["Choice"]
        for letter, text, printed in zip("ABCD", question.choices, row["Choice"], strict=True):
            assert printed.split() == f"{letter}. {text}".split()


def test_daily_omni_example_folders(assets):
    clips = assets / "clips/daily_omni"
    found = [read("daily_omni", path) for path in sorted(clips.glob("*/qa.json"))]
    questions = [question for reading in found for question in reading.questions]
    assert len(questions) == 6
    assert all((clips / question.path).is_file() for question in questions)
    whole = read("daily_omni", assets / "benchmarks/daily_omni/qa.json").questions
    by_id = {question.id: question for question in whole}
    assert all(by_id[question.id] == question for question in questions)


def test_rows_that_cannot_be_understood_are_named(tmp_path):
    bad = {
        "video_id should be a name, got nothing; there is 'Question', 'Choice'": {"video_id": None},
        "video_id should be a name and no path, got '../x'": {"video_id": "../x"},
        "video_id should be a name and no path, got 'x\\n1'": {"video_id": "x\n1"},
        "Question should be a text, got '  '": {"Question": "  "},
        "Choice should be a list of 4 texts, got ['A. a', 'B. b']": {"Choice": ["A. a", "B. b"]},
        "Choice should be texts, got 3": {"Choice": ["A. a", "B. b", "C. c", 3]},
        "option C has no text": {"Choice": ["A. a", "B. b", "C.", "D. d"]},
        "options have the letters B, A, C, D; expected A, B, C, D": {
            "Choice": ["B. a", "A. b", "C. c", "D. d"]
        },
        "options have the letters A, B, A, B; expected": {
            "Choice": ["A. a", "B. b", "A. c", "B. d"]
        },
        "options have the letters A, none, C, D; exp": {"Choice": ["A. a", "b", "C. c", "D. d"]},
        "Answer should be a letter from A to D, got 'E'": {"Answer": "E"},
        "Answer should be a letter from A to D, got 'a dog'": {"Answer": "a dog"},
        "Answer should be a letter from A to D, got nothing": {"Answer": None},
        "video_duration should be 30s, 60s, got '45s'": {"video_duration": "45s"},
        "Type should be a text, got ['Inference']": {"Type": ["Inference"]},
    }
    rows = [daily_omni_row(), *(daily_omni_row(**change) for change in bad.values()), "text"]
    path = annotations.write(tmp_path / "qa.json", rows)
    reading = read("daily_omni", path)
    told = problems(reading)
    assert [type(one) for one in reading.questions[:2]] == [Trajectory, DataProblem]
    assert len(told) == len(bad) + 1 and not reading.repaired
    for number, (expected, message) in enumerate(zip([*bad, "'text'"], told, strict=True), 2):
        assert message.startswith(f"{path}:{number}:") and expected in message, message
    found = counts(benchmarks.get("daily_omni"), reading)
    assert (found.questions, found.refused, found.answers) == (1, len(bad) + 1, {"B": 1})


def test_what_is_mended_is_told(tmp_path):
    rows = [
        daily_omni_row(Answer=" (b)."),
        daily_omni_row(Choice=["a dog", "A yes, b", "Cats", "D"]),
        daily_omni_row(Type="", video_category=None, video_duration="30S"),
        daily_omni_row(Choice=["(A) a", " b) b", "C： c", "D . d"]),
    ]
    path = annotations.write(tmp_path / "qa.json", rows)
    reading = read("daily_omni", path)
    assert reading.repaired == [
        f"{path}:1 x1-1: Answer ' (b).' read as B",
        f"{path}:2 x1-2: options without letters, lettered by their place",
        f"{path}:3 x1-3: no Type; not counted by it",
        f"{path}:3 x1-3: no video_category; not counted by it",
        f"{path}:3 x1-3: video_duration '30S' read as 30s",
    ]
    first, unlettered, unknown, printed = reading.questions
    assert first.answer == "B" and unlettered.choices == ("a dog", "A yes, b", "Cats", "D")
    assert unlettered.metadata["options"] == ["A. a dog", "B. A yes, b", "C. Cats", "D. D"]
    assert {"Type", "video_category"}.isdisjoint(unknown.metadata)
    assert printed.choices == ("a", "b", "c", "d")
    assert counted("daily_omni", path).axes["Type"] == {"Inference": 3}


def test_files_that_are_none(tmp_path):
    for name in NAMES:
        with pytest.raises(InputError, match=r"gone\.json: no such file"):
            read(name, tmp_path / "gone.json")
        for text, message in (
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("3", "expected "),
            ("[]" if name != "worldsense" else "{}", "has no questions"),
        ):
            path = tmp_path / "a.json"
            path.write_text(text)
            with pytest.raises(InputError, match=message):
                read(name, path)
        path.write_bytes(b"\xff\xfe[")
        with pytest.raises(InputError, match="is not UTF-8 text"):
            read(name, path)
    other = annotations.write(tmp_path / "other.json", annotations.lvomnibench())
    with pytest.raises(InputError, match=r"none of 5 rows can be used, .* 'question_id', 'video"):
        read("daily_omni", other)
    twice = annotations.lvomnibench()[:2]
    twice[1]["question_id"] = "q0"
    told = problems(read("lvomnibench", annotations.write(tmp_path / "twice.json", twice)))
    assert told[0].endswith(
        f"twice.json:2: 'q0' duplicate id: first used at {tmp_path}/twice.json:1"
    )


# ---------------------------------------------------------------------------- OmniVideoBench


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("omnivideobench", {"(0,1]": 171, "(1,5]": 340, "(5,10]": 227, "(10,30]": 262}),
        ("video_mme", {"short": 900, "medium": 900, "long": 900}),
    ],
)
def test_published_breakdowns_are_of_the_published_numbers(name, values):
    """Means over the whole set; the paper's own differ by up to 0.3 (see benchmarks.video_mme)."""
    benchmark, total = benchmarks.get(name), sum(values.values())
    assert set(benchmark.published_by) <= set(benchmark.axes)
    for model, by_value in benchmark.published_by["duration"].items():
        assert list(by_value) == list(values)
        mean = sum(by_value[value] * count for value, count in values.items()) / total
        assert mean == pytest.approx(benchmark.published[model], abs=0.3)


def test_omnivideobench_with_its_dirt(tmp_path):
    path = annotations.write(tmp_path / "data.json", annotations.omnivideobench())
    reading = read("omnivideobench", path)
    found = counts(benchmarks.get("omnivideobench"), reading)
    assert (found.questions, found.videos, found.refused) == (1000, 628, 0)
    for axis, expected in annotations.OMNIVIDEOBENCH.items():
        assert found.axes[axis] == expected, axis
    assert found.answers == annotations.OMNIVIDEOBENCH_ANSWERS
    questions = {question.id: question for question in reading.questions}
    # By place: the letter D is not printed.
    repeated = questions["video_81-2"]
    assert repeated.metadata["options"] == ["A. thing 1", "B. thing 2", "A. thing 3", "B. thing 4"]
    assert repeated.choices[3] == "thing 4" and repeated.answer == "D"
    assert all(
        q.choices == ("thing 1", "thing 2", "thing 3", "thing 4") for q in questions.values()
    )
    longest = [q for q in questions.values() if q.path in ("video_89.mp4", "video_95.mp4")]
    assert [q.metadata["duration"] for q in longest] == ["(10,30]"] * 5
    lettered = [line for line in reading.repaired if "they count by their place" in line]
    texts = [line for line in reading.repaired if "the text of answer is" in line]
    assert len(lettered) == 3 and len(texts) == 63 and found.repaired == 66
    assert sum("that of no option" in line for line in texts) == 61


def test_omnivideobench_durations(tmp_path):
    video = annotations.omnivideobench()[0]
    lengths = {
        "00:01": "(0,1]",
        "01:00": "(0,1]",
        "01:01": "(1,5]",
        "5:00": "(1,5]",
        "05:01": "(5,10]",
        "10:00": "(5,10]",
        "10:01": "(10,30]",
        "00:30:00": "(10,30]",
        "01:00:00": "(10,30]",
    }
    bad = ["00:00", "90", "1:60", "01:75:00", "", None, 90, "1:2:3"]
    videos = [
        video | {"video": f"v{n}", "duration": length} for n, length in enumerate([*lengths, *bad])
    ]
    for one in videos:
        one["questions"] = video["questions"][:1]
    reading = read("omnivideobench", annotations.write(tmp_path / "data.json", videos))
    asked = [q for q in reading.questions if isinstance(q, Trajectory)]
    assert [q.metadata["duration"] for q in asked] == list(lengths.values())
    assert len(problems(reading)) == len(bad)
    assert all("duration should be" in problem for problem in problems(reading))


# ---------------------------------------------------------------------------- WorldSense


def worldsense_tsv(path, videos):
    """The file that VLMEvalKit makes of the annotations, lists as Python writes them."""
    columns = ["index", "video", "video_path", "duration", "domain", "candidates", "sub_category"]
    columns += ["audio_class", "task_domain", "task_type", "subtitle_path", "audio_path"]
    columns += ["video_caption", "question", "answer"]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        table.writeheader()
        for name, video in videos.items():
            for key in filter(lambda key: key.startswith("task"), video):
                table.writerow(video | video[key] | {"video": name})
    return path


def test_worldsense_as_json_and_as_tsv(tmp_path):
    path = annotations.write(tmp_path / "worldsense_qa.json", annotations.worldsense())
    reading = read("worldsense", path)
    first, second, third = reading.questions
    assert (first.id, second.id, third.id) == ("dvOk-1", "dvOk-2", "-x_9-1")
    assert (first.path, third.answer, len(second.choices)) == ("dvOk.mp4", "D", 3)
    assert first.choices[1] == "It's place 'B'."
    found = counts(benchmarks.get("worldsense"), reading)
    assert (found.questions, found.videos, found.refused, found.repaired) == (3, 2, 0, 0)
    assert found.axes == {
        "task_domain": {"Recognition": 2, "Understanding": 1},
        "task_type": {"Audio Change": 2, "Spatial Relation": 1},
        "domain": {"Music": 2, "Games": 1},
        "audio_class": {"Music": 3, "Speech": 2},
        "duration": {"<1min": 2, ">8min": 1},
    }
    tsv = read("worldsense", worldsense_tsv(tmp_path / "w.tsv", annotations.worldsense()))
    assert tsv.questions == reading.questions and not tsv.repaired  # `where` is not compared
    assert tsv.questions[2].where == f"{tmp_path}/w.tsv:3"


def test_worldsense_refusals(tmp_path):
    videos = annotations.worldsense()
    videos["dvOk"]["task1"]["answer"] = "D"  # of three
    videos["-x_9"]["duration"] = "9min"
    videos["other"] = videos["dvOk"] | {"video_id": "x"}
    videos["bare"] = {"video_id": "bare"}
    videos["loud"] = annotations.worldsense()["-x_9"] | {"video_id": "loud", "audio_class": "Music"}
    told = problems(read("worldsense", annotations.write(tmp_path / "a.json", videos)))
    for message, expected in zip(
        told,
        [
            "a.json:2: 'dvOk-2' malformed line: answer should be a letter from A to C, got 'D'",
            "a.json:3: '-x_9-1' malformed line: duration should be <1min, 1-2min,",
            "a.json:4: 'other-1' malformed line: video_id 'x' stands under 'other'",
            "a.json:5: 'other-2' malformed line: video_id 'x' stands under 'other'",
            "a.json:6: 'bare-1' malformed line: candidates should be a list of 3 or 4 texts",
            "a.json:7: 'loud-1' malformed line: audio_class should be a list of texts, got 'Music'",
        ],
        strict=True,
    ):
        assert expected in message
    wide = worldsense_tsv(tmp_path / "wide.tsv", annotations.worldsense())
    wide.write_text(wide.read_text().rstrip("\n") + "\tmore\n")
    assert problems(read("worldsense", wide)) == [
        f"{wide}:3: malformed line: expected an object, got 'cells beyond the last column'"
    ]
    (tmp_path / "b.tsv").write_text("index\tvideo\tquestion\tanswer\n0\tx\ty\tA\n")
    with pytest.raises(InputError, match=r"b\.tsv: expected columns candidates in its header"):
        read("worldsense", tmp_path / "b.tsv")


# ---------------------------------------------------------------------------- LVOmniBench


def test_lvomnibench_with_its_exports(tmp_path):
    path = annotations.write(tmp_path / "data.json", annotations.lvomnibench())
    reading = read("lvomnibench", path)
    assert [q.id for q in reading.questions] == ["q0", "1", "2", "3", "4"]
    for question in reading.questions:
        assert question.choices == ("red", "green", "it's blue", "none") and question.answer == "C"
    assert [line.removeprefix(f"{path}:") for line in reading.repaired] == [
        "2 1: options are one text, read as the list that it writes",
        "2 1: the right letter is named answer and not correct_option",
        "3 2: options are one text, parted at A, B, C and D",
        "4 3: options are one text, parted at A, B, C and D",
        "4 3: the right letter is named answer and not correct_option",
        "4 3: difficulty 'high' read as High",
        "5 4: options are one text, parted at A, B, C and D",
    ]
    found = counted("lvomnibench", path)
    assert found.videos == 2 and found.axes == {
        "question_type": {"Counting": 5},
        "audio_type": {"Speech": 3, "Music": 2},
        "difficulty": {"Low": 2, "High": 2, "Medium": 1},
        "video_category": {"Sports": 5},
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "red, green, blue, none", "A. red B. green C. blue", "A. x B. y D. z C. w"),
        *("so A. x B. y C. z D. w", "A. vitamin A. B. y C. z D. w", "['red', 'green']", "[[[["),
        *("{[1]: 2}", "A. x B.  C. z D. w", "['A. x', 'B. y', 'C. z', 4]", "[" * 10_000),
    ],
)
def test_lvomnibench_options_that_could_be_anything(tmp_path, text):
    rows = annotations.lvomnibench()[:2]
    rows[1]["options"] = text
    reading = read("lvomnibench", annotations.write(tmp_path / "data.json", rows))
    assert len(problems(reading)) == 1 and "data.json:2: '1' malformed" in problems(reading)[0]


# ---------------------------------------------------------------------------- Video-MME


def test_video_mme_in_all_its_forms(tmp_path):
    rows = annotations.video_mme()
    flat = annotations.write(tmp_path / "rows.json", rows)
    reading = read("video_mme", flat)
    found = counts(benchmarks.get("video_mme"), reading)
    assert (found.questions, found.videos, found.refused, found.repaired) == (2700, 900, 0, 0)
    assert found.axes["duration"] == {"short": 900, "medium": 900, "long": 900}
    assert found.axes["domain"] == {"Knowledge": 1350, "Life Record": 1350}
    assert set(found.axes["task_type"].values()) == {900}
    assert reading.questions[0].path == "yt-0.mp4"
    assert reading.questions[0].choices[0] == "Apples,"
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert read("video_mme", lines).questions == reading.questions
    template = tmp_path / "template.json"
    template.write_text(annotations.video_mme_template(rows))
    with pytest.raises(json.JSONDecodeError):
        json.loads(template.read_text())
    loose = read("video_mme", template)
    assert loose.repaired == [f"{template}: 2700 commas before a closing bracket left out"]
    assert loose.questions[0].path == "001.mp4"  # it names no other
    for one, other in zip(loose.questions, reading.questions, strict=True):
        assert dataclasses.replace(one, path=other.path) == other


def test_video_mme_as_parquet(tmp_path):
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    rows, path = annotations.video_mme()[:30], tmp_path / "test.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    expected = read("video_mme", annotations.write(tmp_path / "rows.json", rows))
    assert read("video_mme", path).questions == expected.questions
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"test\.parquet: is not parquet"):
        read("video_mme", path)


def test_video_mme_lines_that_are_broken(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = json.dumps(annotations.video_mme()[0])
    path.write_text(f"{row}\n{row[:40]}\n3\n")
    told = problems(read("video_mme", path))
    assert told[0].startswith(f"{path}:2: malformed line: expected an object, got '{{\"video_id")
    assert told[1].startswith(f"{path}:3: malformed line: expected an object, got 3")


# ---------------------------------------------------------------------------- any file

SAMPLES = {
    "daily_omni": [daily_omni_row()],
    "lvomnibench": annotations.lvomnibench()[:2],
    "omnivideobench": annotations.omnivideobench()[80:82],
    "video_mme": annotations.video_mme()[:2],
    "worldsense": annotations.worldsense(),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def places(value, path=()):
    """Paths of everything inside a value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@pytest.mark.parametrize("name", NAMES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_json_is_read_or_refused(name, tmp_path, data):
    sample = json.loads(json.dumps(SAMPLES[name]))
    *above, last = data.draw(st.sampled_from([p for p in places(sample) if p]))
    inner = sample
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(JSON)
    try:
        reading = read(name, annotations.write(tmp_path / "any.json", sample))
    except InputError as error:
        assert "any.json" in str(error)
        return
    for question in reading.questions:
        if isinstance(question, Trajectory):
            benchmark = benchmarks.get(name)
            assert LETTERS.index(question.answer) < len(question.choices) in (3, 4)
            assert set(question.metadata) <= {*benchmark.axes, "options"}
            assert all(question.choices) and "/" not in question.path.partition("/")[2]
            assert benchmark.styles["own"].ask(question)
