"""Whether a machine can run the package: versions, devices, codecs, each tried and not only listed.

`examine()` returns findings; a finding that is required and not ok means something will not work.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import re
import sys
import time
from typing import Literal

import numpy as np

# Distribution -> (module, lowest version). The versions are those of setup.py; a test compares.
REQUIRED = {
    "jax": ("jax", "0.10.2"),
    "jaxlib": ("jaxlib", ""),
    "flax": ("flax.linen", "0.12.8"),
    "orbax-checkpoint": ("orbax.checkpoint", "0.12.2"),
    "numpy": ("numpy", "2.0"),
    "ml_dtypes": ("ml_dtypes", "0.5"),
    "jaxtyping": ("jaxtyping", "0.3"),
    "safetensors": ("safetensors", "0.5"),
    "tokenizers": ("tokenizers", "0.21"),
    "sentencepiece": ("sentencepiece", "0.2"),
    "jinja2": ("jinja2", "3.1"),
    "av": ("av", "14.0"),
    "pillow": ("PIL.Image", "10.0"),
    "tqdm": ("tqdm", "4.66"),
    "optax": ("optax", "0.2.7"),
    "chex": ("chex", "0.1.89"),
    "ml-collections": ("ml_collections", "1.0"),
    "tensorboardX": ("tensorboardX", "2.6"),
}
# Distribution -> what is missing without it. Only looked up: some take seconds to import.
OPTIONAL = {
    "libtpu": "running on TPU, and compiling for one: pip install 'latentomni_jax[tpu]'",
    "grain": "the training data loader: pip install 'latentomni_jax[data]'",
    "array-record": "training records: pip install 'latentomni_jax[data]'",
    "tensorflow-datasets": "training records: pip install 'latentomni_jax[data]'",
    "torch": "parity tests against the reference: bash launch/test.sh installs it",
    "transformers": "parity tests against the reference: bash launch/test.sh installs it",
}
DECODERS = ("h264", "aac")  # without these most videos cannot be read
OTHER_DECODERS = ("hevc", "vp9", "av1", "mp3", "opus", "flac")
ENCODERS = ("h264", "aac")  # the demo writes a clip


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
      group: heading it belongs to. name: what it is. value: what was found.
      ok: usable. required: the package needs it. advice: what to do where it is not ok.
    """

    group: str
    name: str
    value: str
    ok: bool = True
    required: bool = True
    advice: str = ""


def examine() -> list[Finding]:
    """Looks at everything; never raises for a broken installation, that is a finding."""
    return [*_python(), *_required(), *_optional(), *_host(), *_devices(), *_codecs()]


def _python() -> list[Finding]:
    ok = sys.version_info >= (3, 11)
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("machine", "python", system, ok, advice="needs Python 3.11 or newer")]


def _required() -> list[Finding]:
    findings = []
    for name, (module, lowest) in REQUIRED.items():
        install = f"pip install -U '{name}{f'>={lowest}' if lowest else ''}'"
        try:
            importlib.import_module(module)
            version = importlib.metadata.version(name)
        except Exception as error:  # a broken binary can raise anything when it is imported
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            findings.append(Finding("packages", name, problem, False, advice=install))
            continue
        ok = _numbers(version) >= _numbers(lowest)
        findings.append(Finding("packages", name, version, ok, advice=install))
    return findings


def _optional() -> list[Finding]:
    findings = []
    for name, purpose in OPTIONAL.items():
        try:
            version = importlib.metadata.version(name)
            findings.append(Finding("optional", name, version, required=False))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("optional", name, "absent", False, False, f"for {purpose}"))
    return findings


def _host() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return [
        Finding("machine", "cores", str(cores)),
        Finding("machine", "memory", f"{pages * page / 2**30:.1f} GiB"),
    ]


def _devices() -> list[Finding]:
    try:
        import jax

        devices = jax.local_devices()
    except Exception as error:  # a missing driver, a TPU held by another process, ...
        problem = " ".join(str(error).split())
        advice = "unset JAX_PLATFORMS, or set it to cpu; on TPU, end what else holds it"
        return [Finding("devices", "jax", problem, False, advice=advice)]
    findings = [
        Finding("devices", f"{device.platform}:{device.id}", *_try_device(device))
        for device in devices
    ]
    if jax.process_count() > 1:
        count = f"{len(devices)} of {jax.device_count()} devices, {jax.process_count()} processes"
        findings.append(Finding("devices", "pod", count))
    return findings


def _try_device(device) -> tuple[str, bool]:
    """What a device is and whether it multiplies matrices, which is most of what it has to do."""
    import jax

    memory = (device.memory_stats() or {}).get("bytes_limit")
    kind = device.device_kind + (f", {memory / 2**30:.1f} GiB" if memory else "")
    try:
        values = np.arange(256 * 256, dtype=np.float32).reshape(256, 256) % 7
        x = jax.device_put(values, device)
        multiply = jax.jit(lambda x: x @ x)
        multiply(x).block_until_ready()
        start = time.perf_counter()
        product = np.asarray(multiply(x))
        spent = time.perf_counter() - start
    except Exception as error:
        return f"{kind}: {' '.join(str(error).split())}", False
    ok = np.allclose(product, values @ values, rtol=1e-2)
    return f"{kind}; 256x256 matmul {'right' if ok else 'WRONG'}, {spent * 1e3:.1f} ms", ok


def _codecs() -> list[Finding]:
    try:
        import av.codec.codec
    except Exception as error:
        return [Finding("codecs", "av", str(error), False, advice="pip install -U av")]

    def has(name: str, mode: Literal["r", "w"]) -> bool:
        try:
            av.codec.Codec(name, mode)
        except av.codec.codec.UnknownCodecError:
            return False
        return True

    def finding(name: str, mode: Literal["r", "w"], required: bool) -> Finding:
        found, kind = has(name, mode), "decoder" if mode == "r" else "encoder"
        advice = f"this build of PyAV has no {name} {kind}: pip install -U --only-binary :all: av"
        return Finding(
            "codecs", f"{name} {kind}", "present" if found else "absent", found, required, advice
        )

    return [
        *(finding(name, "r", True) for name in DECODERS),
        *(finding(name, "r", False) for name in OTHER_DECODERS),
        *(finding(name, "w", False) for name in ENCODERS),
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, to compare: "0.12.8.dev1" -> (0, 12, 8)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()
