"""`latentomni doctor`: findings are tried for real; broken ones change the exit code."""

import json
import re
from pathlib import Path

import pytest

from latentomni_jax.pod import doctor

SETUP = (Path(__file__).parents[2] / "setup.py").read_text()


def test_this_machine_is_fit(latentomni):
    ran = latentomni("doctor")
    assert ran.code == 0, ran.out
    assert ran.out.splitlines()[-1] == "all that is required works"
    assert re.search(r"ok jax +\d", ran.out)
    assert "matmul right" in ran.out


def test_json_lists_the_same(latentomni):
    found = json.loads(latentomni("doctor", "--json").out)
    assert found["ok"] is True
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert {"python", "memory", "jax", "flax", "av", "h264 decoder", "libtpu"} <= set(by_name)
    assert all(finding["ok"] for finding in found["findings"] if finding["required"])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("no_such_module_here", "1.0"), "ModuleNotFoundError"),
        (("numpy", "999.0"), "numpy>=999.0"),
    ],
)
def test_what_is_absent_or_too_old_is_named_with_a_remedy(latentomni, monkeypatch, entry, said):
    monkeypatch.setitem(doctor.REQUIRED, "numpy", entry)
    ran = latentomni("doctor")
    assert ran.code == 1
    assert re.search(r"NO numpy .*pip install -U 'numpy", ran.out) and said in ran.out
    assert ran.out.splitlines()[-1] == "not usable yet: numpy"


def test_a_missing_codec_and_a_missing_option_differ(latentomni, monkeypatch):
    monkeypatch.setattr(doctor, "DECODERS", ("h264", "no_such_codec"))
    monkeypatch.setitem(doctor.OPTIONAL, "no-such-distribution", "nothing")
    ran = latentomni("doctor")
    assert ran.code == 1
    assert "NO no_such_codec decoder" in ran.out
    assert "-- no-such-distribution" in ran.out
    assert ran.out.splitlines()[-1] == "not usable yet: no_such_codec decoder"


def test_required_versions_are_those_of_setup():
    core = re.search(r"CORE = \[(.*?)\]", SETUP, re.DOTALL)[1]
    listed = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', core))
    assert {name: lowest for name, (_, lowest) in doctor.REQUIRED.items() if lowest} == listed


@pytest.mark.parametrize(
    ("older", "newer"), [("0.9.1", "0.10.2"), ("0.12.8.dev1", "0.12.9"), ("", "1"), ("2", "2.0.1")]
)
def test_versions_compare_as_numbers(older, newer):
    assert doctor._numbers(older) < doctor._numbers(newer)
