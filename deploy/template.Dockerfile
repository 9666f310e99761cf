# The image of the flex template: the worker image, Google's launcher and the program that the launcher runs. IMAGE is one
# that was just built; LAUNCHER is gcr.io/dataflow-templates-base/python311-template-launcher-base@sha256:…
ARG IMAGE
ARG LAUNCHER
FROM ${LAUNCHER} AS launcher
FROM ${IMAGE}
ARG LAUNCHER
RUN case "$LAUNCHER" in *@sha256:????????????????????????????????????????????????????????????????) ;; \
    *) echo "give LAUNCHER by its digest" >&2; exit 2 ;; esac
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY deploy/template.py /template/template.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/template.py
