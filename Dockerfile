# What a Beam worker needs to run gatokit's builds: Beam's own image and gatokit[build,gcp] at the pinned versions.
# Neither TensorFlow nor JAX: [build] asks for tensorflow-datasets, which reads TFDS' files without TensorFlow.
# (Recordings of EnvLogger need gatokit[envlogger] as well, and that one brings TensorFlow.)
#
#   gcloud builds submit --tag "$IMAGE" .        or        docker build -t "$IMAGE" .
FROM apache/beam_python3.11_sdk:2.77.0

WORKDIR /opt/gatokit
COPY constraints.txt pyproject.toml setup.py ./
COPY cli cli
COPY environments environments
COPY inspection inspection
COPY pipelines pipelines
COPY storage storage
COPY loader loader
COPY policy policy
COPY evaluation evaluation
COPY schemas schemas
COPY tokenizers tokenizers
COPY trainer trainer
RUN pip install --no-cache-dir -c constraints.txt '.[build,gcp]' \
    && pip check \
    && python -c "import sys, gatokit.pipelines.run; sys.exit(any(name in sys.modules for name in ('tensorflow', 'jax')))"
# The entry point is the base image's: /opt/apache/beam/boot.
