"""The `latentomni` command: quick help, one line for mistakes, exit codes."""

import os
import subprocess
import sys

import pytest

import latentomni_jax
from latentomni_jax import __main__ as command
from latentomni_jax.layout import InputError


def test_help_and_version_do_not_import_jax_or_numpy():
    code = (
        "import sys; from latentomni_jax.__main__ import main;"
        "assert main(['--help']) == main(['--version']) == 0;"
        "assert not {'jax', 'numpy', 'av'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in ran.stdout for verb in command.VERBS)
    assert ran.stdout.endswith(f"latentomni_jax {latentomni_jax.__version__}\n")


@pytest.mark.parametrize(
    ("argv", "said"), [(["fly"], "no verb 'fly'; there are answer, inspect,"), ([], "usage:")]
)
def test_no_verb_or_an_unknown_one(argv, said, capsys):
    assert command.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err


@pytest.mark.parametrize("verb", command.VERBS)
def test_every_verb_explains_itself_with_examples(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([verb, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: latentomni {verb}")
    assert f"examples:\n  {'latentomni ' + verb if verb != 'port' else ''}" in text


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (InputError("clip.mp4:\n is broken"), 2, "latentomni doctor: error: clip.mp4: is broken\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_one_line_and_an_exit_code(monkeypatch, capsys, error, code, err):
    def fail(args):
        raise error

    monkeypatch.setattr("latentomni_jax.commands.doctor.run", fail)
    assert command.main(["doctor"]) == code
    assert capsys.readouterr() == ("", err)


def test_warnings_are_one_line():
    code = (
        "import sys, warnings; from latentomni_jax import __main__ as command;"
        "from latentomni_jax.commands import doctor;"
        "doctor.run = lambda args: warnings.warn('clip.mp4: ends early');"
        "command.main(['doctor']); warnings.warn('after')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, *_ = ran.stderr.splitlines()
    assert first == "latentomni doctor: warning: clip.mp4: ends early"
    assert second.endswith("UserWarning: after")  # other warnings are as they were


def test_a_reader_that_has_read_enough_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", "latentomni_jax", "doctor"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, "")
