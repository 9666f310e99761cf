# The image of the flex template: the worker image, Google's launcher and the program that the launcher runs.
ARG IMAGE
FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:latest AS launcher
FROM ${IMAGE}
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY deploy/template.py /template/template.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/template.py
