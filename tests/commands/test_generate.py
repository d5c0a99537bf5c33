"""`latentomni generate`: processes killed, stopped and moved, its complaints, and what it tells."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import ROOT, environment
from tests.questions import BROKEN, make_questions

# One bucket and no latents: these tests are about processes. View and window are tested beside the
# code (tests/evaluate/test_generate.py).
QUICK = ("--batch", 2, "--window", 1, "--latents", "off", "--max-new-tokens", 8)


def arguments(model, data, out, *more):
    return ["generate", "--model", model, "--data", data, "--out", out, *QUICK, *more]


def start(*given, devices=None, **variables):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "latentomni_jax", *map(str, given)],
        cwd=ROOT, env=environment(devices) | variables, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(process, out, count):
    """Until so many windows are done, or the process has ended."""
    parts = out.with_name(out.name + ".parts")
    while process.poll() is None and len(list(parts.glob("0*"))) < count:
        time.sleep(0.01)


def lines_of(path):
    return [line for line in path.read_text().splitlines() if line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Questions of one length without clips, and one of each thing that is broken."""
    path = make_questions(tmp_path_factory.mktemp("questions"), 120)
    broken = [lines_of(path)[place] for place in BROKEN]
    kept = [x for x in lines_of(path) if x in broken or ("a.mp4" not in x and len(x) < 250)]
    path.write_text("".join(f"{line}\n" for line in kept))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "answers.jsonl"


def test_a_run_tells_what_it_did_and_is_done_but_once(latentomni, tiny_model, plain, undisturbed):
    ran = latentomni(*arguments(tiny_model, plain, undisturbed))
    lines = list(map(json.loads, lines_of(undisturbed)))
    assert ran.code == 1 and len(lines) == len(lines_of(plain)) > 50
    right = sum(line.get("right") or False for line in lines)
    answered = len(lines) - len(BROKEN)
    assert f"{len(lines)} questions, {answered} answered, {right} of {answered} right" in ran.out
    for reason in BROKEN.values():
        assert len([line for line in ran.err.splitlines() if reason in line]) == 1
    assert f"{len(lines)}/{len(lines)}" in ran.err  # the bar
    again = latentomni(*arguments(tiny_model, plain, undisturbed))
    assert (again.code, again.out) == (ran.code, ran.out)


def test_kill_stop_and_other_hosts_change_nothing(
    latentomni, tiny_model, plain, undisturbed, tmp_path
):
    out = tmp_path / "answers.jsonl"
    command = arguments(tiny_model, plain, out)
    first = start(*command)
    wait_for(first, out, 1)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and not out.exists()
    left = len(list((tmp_path / "answers.jsonl.parts").iterdir()))
    second = start(*command, "--processes", 2, "--process", 1)
    wait_for(second, out, left + 1)
    second.send_signal(signal.SIGTERM)
    _, errors = second.communicate()
    assert second.returncode == 3 and "finishing the questions in hand" in errors, errors
    assert "start it again" in errors and not out.exists()
    idle = latentomni(*command, "--processes", 99, "--process", 98)  # there are not so many windows
    assert idle.code == 0 and "windows are not done, which are of others" in idle.err
    assert latentomni(*command).code == 1
    if not undisturbed.exists():  # its own test has not run here
        latentomni(*arguments(tiny_model, plain, undisturbed))
    assert out.read_bytes() == undisturbed.read_bytes()


def test_what_is_there_of_another_run_is_refused(latentomni, tiny_model, plain, tmp_path):
    data, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    data.write_text(lines_of(plain)[0] + "\n")
    command = arguments(tiny_model, data, out)
    ran = latentomni(*command)
    assert ran.code == 0 and "1 questions, 1 answered" in ran.out
    before = out.read_bytes()
    ran = latentomni(*command, "--seed", 3)
    assert ran.code == 2 and "seed was 0 and is 3" in ran.err
    assert len(ran.err.splitlines()) == 1 and out.read_bytes() == before
    data.write_text(lines_of(plain)[-1] + "\n")
    assert "questions was" in latentomni(*command).err
    assert latentomni(*command, "--overwrite").code == 0 and out.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--processes", 2), "go together"),
        (("--processes", 2, "--process", 2), "numbered from 0"),
        (("--pod", "--processes", 2), "give it alone"),
        (("--processes", 2, "--process", 0, "--overwrite"), "several processes"),
        (("--tensor", 3), "does not multiply"),
        (("--batch", 0), "one question a batch"),
        (("--max-new-tokens", 0), "max_new_tokens"),
    ],
)
def test_bad_options_are_refused_before_anything_is_there(
    latentomni, tiny_model, plain, tmp_path, options, named
):
    ran = latentomni(*arguments(tiny_model, plain, tmp_path / "out.jsonl", *options))
    assert ran.code == 2 and named in ran.err and len(ran.err.splitlines()) == 1, ran.err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- at scale


@pytest.mark.slow
def test_500_questions_with_kills_at_random_moments(tiny_model, tmp_path):
    """Clips good and broken among them; killed four times, then let be."""
    data = make_questions(tmp_path, 500)
    command = arguments(tiny_model, data, tmp_path / "whole.jsonl", "--batch", 8, "--window", 2)
    whole = start(*command)
    _, errors = whole.communicate()
    assert whole.returncode == 1, errors
    command[command.index("--out") + 1] = out = tmp_path / "killed.jsonl"
    moments = random.Random(0)
    for windows in sorted(moments.sample(range(1, 26), 4)):  # of 32
        process = start(*command)
        wait_for(process, out, windows)
        time.sleep(moments.uniform(0, 0.3))  # somewhere in the next one
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not out.exists()
    last = start(*command)
    _, errors = last.communicate()
    assert last.returncode == 1, errors
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(lines_of(out)) == 500


@pytest.mark.slow
def test_four_devices_write_what_one_writes(latentomni, tiny_model, tmp_path):
    data = make_questions(tmp_path, 12)
    latentomni(*arguments(tiny_model, data, tmp_path / "one.jsonl"))
    mesh = start(*arguments(tiny_model, data, tmp_path / "mesh.jsonl", "--tensor", 2), devices=4)
    _, errors = mesh.communicate()
    assert mesh.returncode == 1, errors
    assert (tmp_path / "mesh.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert json.loads((tmp_path / "mesh.jsonl.run.json").read_text())["mesh"] == "data 2, tensor 2"


@pytest.mark.slow
def test_hosts_of_a_pod_load_together_and_then_are_apart(latentomni, tiny_model, plain, tmp_path):
    """The platform is Slurm, as far as JAX can see; process 0, which has JAX's service, dies."""
    out = tmp_path / "answers.jsonl"

    def pod(*harm):
        hosts = [
            start(
                *arguments(tiny_model, plain, out, "--pod"),
                SLURM_JOB_ID="7", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2",
                SLURM_PROCID=str(number), SLURM_LOCALID=str(number),
            )
            for number in range(2)
        ]  # fmt: skip
        for number in harm:
            wait_for(hosts[number], out, 1)
            hosts[number].send_signal(signal.SIGKILL)
        return [host.communicate()[1] for host in hosts], [host.returncode for host in hosts]

    errors, codes = pod(0)
    assert codes == [-signal.SIGKILL, 0], errors
    assert "which are of others" in errors[1] and not out.exists()
    errors, codes = pod()
    assert 1 in codes and set(codes) <= {0, 1}, errors
    latentomni(*arguments(tiny_model, plain, tmp_path / "one.jsonl"))
    assert out.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
