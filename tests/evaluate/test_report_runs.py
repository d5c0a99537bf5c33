"""The page has the runs' numbers, compares what can be, and no text on it does anything."""

import json
import re
from html import unescape

import pytest
from scipy.stats import binom

from latentomni_jax.__main__ import main
from latentomni_jax.evaluate.compare import pairs, sweeps
from latentomni_jax.evaluate.pages import explorer
from latentomni_jax.evaluate.pages.run_report import write_report
from latentomni_jax.evaluate.runs import read_runs
from latentomni_jax.evaluate.scores import mcnemar
from latentomni_jax.layout import InputError
from tests.evaluate.runs import (
    PUBLISHED,
    make_explored,
    make_line,
    make_lines,
    make_run,
    make_two,
    tally,
)

pytest.importorskip("matplotlib", reason="pictures need matplotlib (pip install matplotlib)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_two(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    return out


def tables(text):
    """Rows of cells of all tables of a page."""
    return [
        [unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr.*?</tr>", text)
    ]


def cells(told):
    """What a table has of a tally."""
    ends = [told["interval"], told["interval_answered"]]
    shown = [f"[{100 * low:.1f},\N{NO-BREAK SPACE}{100 * high:.1f}]" for low, high in ends]
    all_of, answered = (f"{100 * told[name]:.1f}" for name in ("accuracy", "accuracy_answered"))
    return [
        all_of, shown[0], answered, shown[1],
        *(str(told[name]) for name in ("right", "total", "answered", "unparsed", "failed")),
    ]  # fmt: skip


def test_numbers_are_those_of_the_files(runs, page):
    rows = tables(page.read_text())
    for run in runs:
        scores = json.loads((run / "scores.json").read_text())
        assert [run.name, "own", "tiny", *cells(scores["overall"])] in rows
        for by_value in scores["axes"].values():
            for value, told in by_value.items():
                assert [value, run.name, *cells(told)] in rows
        for letter, counts in scores["positions"].items():
            assert [letter, run.name, str(counts["given"]), str(counts["expected"])] in rows
        cost = json.loads((run / "cost.json").read_text())
        assert [run.name, "12.5", "140", "0.089", "5000", "1600", "48400", "3.00", "cpu"] in rows
        assert cost["peak_memory"] == 3 << 30
    rules = [json.loads((run / "scores.json").read_text())["rules"] for run in runs]
    for rule in rules[0]:
        assert [rule, *(str(counts[rule]) for counts in rules)] in rows
    for model, number in PUBLISHED.items():
        assert [model, "published", "", f"{number:.1f}"] == next(
            row[:4] for row in rows if row[0] == model
        )
    cited = [row[:3] for row in rows if row[1].endswith(", published)")]
    assert cited == [["30s", "LatentOmni (Daily-Omni, published)", "68.2"]]  # none has 120 s
    right = [[line.get("right", False) for line in make_lines(140, s)] for s in (1, 3)]
    counts = [sum(b and not a for a, b in zip(*right, strict=True)),
              sum(a and not b for a, b in zip(*right, strict=True))]  # fmt: skip
    compared = next(row for row in rows if row[:3] == ["one", "two", "140"])
    assert compared[5:] == [*map(str, counts), f"{mcnemar(*counts):.2g}"]


def test_the_page_stands_alone_and_is_the_same_each_time(runs, page, tmp_path):
    text = page.read_text()
    outside = re.sub(r"data:[\w/+-]*;base64,[\w+/=]*", "", text).replace("http-equiv", "")
    assert not re.findall(r"https?:|(?:src|href)=\"(?!#|data:|\")[^\"]", outside)
    assert text.count("data:video/mp4;base64,") == 1  # of one clip there are two questions
    assert text.count("data:image/png;base64,") == 4  # two axes, a sweep, positions
    assert str(runs[0].parent) not in text  # paths of this machine
    again = tmp_path / "again.html"
    assert write_report(runs, again) == "embed" and again.read_text() == text


def test_clips_are_linked_or_left_out(runs, tmp_path, monkeypatch, capsys):
    assert write_report(runs, tmp_path / "a.html", "none") == "none"
    assert "clip-0" not in (tmp_path / "a.html").read_text()
    monkeypatch.setattr(explorer, "EMBEDDED", 10)
    out = tmp_path / "b.html"
    assert main(["report", str(runs[0]), "--out", str(out)]) == 0
    assert "linked to clips" in capsys.readouterr().out
    (url,) = re.findall(r'id="clip-\d">"(.*?)"', out.read_text())
    assert url.endswith("/a%20clip%20%231.mp4") and url.startswith("..")


def test_mcnemar_is_the_sum_of_a_binomial():
    """Of all splits of the questions that differ, those that are at most as likely as this."""
    for gained in range(8):
        for lost in range(8):
            n = gained + lost
            all_splits = binom.pmf(range(n + 1), n, 0.5)
            likely = all_splits[all_splits <= all_splits[gained] * (1 + 1e-9)].sum() if n else 1.0
            assert mcnemar(gained, lost) == pytest.approx(likely, rel=1e-12)


def test_pairs_are_of_questions_that_both_have(tmp_path):
    one = make_run(tmp_path / "one", [make_line(i, "right") for i in range(6)])
    two = make_run(tmp_path / "two", [make_line(i, "failed") for i in range(4, 9)])
    other = make_run(tmp_path / "other", [make_line(1, "right")], benchmark="worldsense")
    (pair,) = pairs(read_runs([one, two, other]))
    assert (pair.shared, pair.right, pair.gained, pair.lost) == (2, (2, 0), 0, 2)
    assert pair.p_value == 0.5


def test_sweeps_are_of_runs_that_differ_in_one_option(tmp_path):
    def run(name, model="tiny", **options):
        return make_run(tmp_path / name, [make_line(0, "right")], model=model, options=options)

    folders = [
        run("b", num_visual=28, num_audio=12), run("a"), run("c", num_visual=8, num_audio=2),
        run("off", latents="off"),
        run("both", latents="off", num_visual=8, num_audio=2),
        run("l2", "m2", weight=1.0, latents="force"), run("l1", "m1", weight=0.5, latents="force"),
    ]  # fmt: skip
    found = {}
    for sweep in sweeps(read_runs(folders)):
        key = sweep.option, tuple(run.name for run in sweep.runs)
        found[key] = (list(sweep.values), sweep.is_numeric, sweep.models_differ)
    assert found == {
        ("slots", ("c", "b", "a")): (["8+2", "28+12", "32+8"], False, False),
        ("slots", ("both", "off")): (["8+2", "32+8"], False, False),
        ("latents", ("a", "off")): (["auto", "off"], False, False),
        ("latents", ("c", "both")): (["auto", "off"], False, False),
        ("weight", ("l1", "l2")): ([0.5, 1.0], True, True),
    }


def test_two_models_are_no_sweep_over_what_they_share(tmp_path):
    folders = [
        make_run(tmp_path / f"{model}{k}", [make_line(0, "right")], model=model, options={"k": k})
        for model in ("x", "y")
        for k in (1, 2)
    ]
    found = [tuple(run.name for run in sweep.runs) for sweep in sweeps(read_runs(folders))]
    assert found == [("x1", "x2"), ("y1", "y2")]


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / name / "run", make_lines(7)) for name in "ab"]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]
    with pytest.raises(InputError, match="is named twice"):
        read_runs([folders[0], folders[0]])


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def count(run, questions, **changes):
    edit(run / "scores.json", overall=tally(make_lines(questions)) | changes)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "scores.json").unlink(), r"scores\.json is not in it; expected"),
        (lambda run: (run / "cost.json").write_text("{"), r"cost\.json: is damaged"),
        (lambda run: edit(run / "scores.json", rules=None), r"scores\.json: is damaged"),
        (lambda run: count(run, 14), r"says \(right, total, unparsed, failed\) are"),
        (lambda run: count(run, 21, failed=9), "counts that do not add up"),
        (lambda run: count(run, 21, accuracy=0.9), "an accuracy that is not right / 21"),
        (lambda run: count(run, 21, interval=[0.9, 0.1]), "an interval"),
        (
            lambda run: edit(run / "cost.json", seconds=float("nan")), "NaN is no JSON number"
        ),
        (
            lambda run: (run / "answers.jsonl").open("a").write('{"line": 9, "id": "x"}\n'),
            r"answers\.jsonl:22: is damaged \(without 'video'\)",
        ),
        (lambda run: (run / "answers.jsonl").write_bytes(b"\xff\n"), "expected text in UTF-8"),
        (lambda run: (run / "explore" / "1.json").write_text("{}"), r"1\.json: is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_refused(tmp_path, capsys, damage, said):
    run = make_run(tmp_path / "run", make_lines(21))
    damage(run)
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 2
    captured = capsys.readouterr()
    assert re.search(said, captured.err) and str(run) in captured.err
    assert captured.err.count("\n") == 1 and not (tmp_path / "report.html").exists()


def test_what_cannot_be_done_is_said(runs, tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no complete run" in capsys.readouterr().err
    assert main(["report", str(runs[0]), "--out", str(runs[0] / "scores.json")]) == 2
    assert "expected a name that ends in .html" in capsys.readouterr().err
    lost = make_run(
        tmp_path / "run", make_lines(7), explored=[make_explored(tmp_path / "x.mp4", "q1")]
    )
    assert main(["report", str(lost), "--out", str(tmp_path / "report.html")]) == 2
    assert "x.mp4: the clip cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("media", ["embed", "link"])
def test_a_run_does_not_get_at_files_that_are_no_clips(tmp_path, media):
    """A run may be of somebody else, and its page be given on."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    run = make_run(tmp_path / "run", make_lines(7), explored=[make_explored(secret, "q1")])
    with pytest.raises(InputError, match=r"secret\.txt: is no clip by its name; expected one of"):
        write_report([run], tmp_path / "report.html", media)
