# The server as an image: for Vertex AI, or for any machine with or without a GPU.
#
#   docker build -t yue-server .
#   docker run --gpus all -p 8080:8080 -v yue-models:/models -e YUE_MODEL=en-cot -e YUE_API_KEY yue-server
#
# It listens everywhere: without a key, another model and the list of jobs are closed, unless YUE_ADMIN=on.
# It runs as user 10001, or as any other whose group is 0, as OpenShift has it. Modes are set here, whatever the umask of
# the checkout was.
#
# BASE               an image with Python 3.11 or newer under the name python3, its venv module, and CA certificates
# TORCH_REQUIREMENT  which torch; what pip takes by itself on Linux is the CUDA build
# COMPILER           the Debian packages with which decode steps are compiled for the GPU; none: they run uncompiled
# PIP_ARGS           more arguments for pip install
# BAKE_MODEL         a model whose weights are put inside; without it they are fetched when they are needed
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS packages
ARG TORCH_REQUIREMENT=torch==2.13.0
ARG PIP_ARGS=
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH}
# By itself and first: it is nearly all of the image, and changes least.
# hadolint ignore=DL3013,SC2086
RUN python3 -m pip install --no-cache-dir ${PIP_ARGS} "${TORCH_REQUIREMENT}"
COPY --chmod=644 requirements.txt /tmp/
# hadolint ignore=SC2086
RUN python3 -m pip install --no-cache-dir ${PIP_ARGS} -r /tmp/requirements.txt

FROM ${BASE} AS runtime
ARG COMPILER="gcc libc6-dev"
# hadolint ignore=DL3008,SC2086
RUN if [ -n "${COMPILER}" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends ${COMPILER} && rm -rf /var/lib/apt/lists/*; \
    fi
# A fixed number, so that the owner of a mounted folder can be set from outside. What is put into /models belongs to its
# group, 0, so that the next user may be another one.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /models yue \
    && install --directory --owner=10001 --group=0 --mode=2775 /models
# On Vertex AI the GPU's driver and tools are mounted at /usr/local/nvidia. The home is for users without one, too.
ENV PATH=/opt/venv/bin:/usr/local/nvidia/bin:${PATH} \
    YUE_HOST=0.0.0.0 \
    HOME=/models \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    HF_HOME=/models/huggingface \
    XDG_CACHE_HOME=/models \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app

# The weights come before the final stage, so that their layer is pushed once as long as they are the same.
FROM runtime AS weights
ARG BAKE_MODEL=
# No more than the download imports: a change of anything else does not fetch the weights anew.
COPY --chmod=755 entrypoint.sh paths.py storage.py ./
COPY --chmod=755 inference/__init__.py inference/catalog.py inference/codec_layout.py inference/errors.py inference/gpu.py \
     inference/log_relay.py inference/vocabulary.py inference/
COPY --chmod=755 inference/weights/__init__.py inference/weights/checksums.py inference/weights/download.py \
     inference/weights/hub.py inference/weights/hub_settings.py inference/weights/mirror.py inference/weights/sync.py \
     inference/weights/terminal.py inference/weights/transfer.py inference/weights/
# What makes the tiny model.
COPY --chmod=755 inference/tiny/__init__.py inference/tiny/checkpoints.py inference/tiny/codec.py \
     inference/tiny/language_models.py inference/tiny/layers.py inference/tiny/model_files.py \
     inference/tiny/score.py inference/tiny/timbres.py inference/tiny/tokenizer.py inference/tiny/vocoder.py \
     inference/tiny/
USER 10001:10001
RUN if [ -n "${BAKE_MODEL}" ]; then YUE_MODEL="${BAKE_MODEL}" ./entrypoint.sh download && chmod -R g=u /models; fi

FROM runtime
COPY --from=weights --chown=10001:0 /models /models
RUN find /models -type d -exec chmod g+s {} +
COPY --chmod=755 entrypoint.sh *.py LICENSE ./
COPY --chmod=755 inference inference
COPY --chmod=755 serving serving
# The contract shows them.
COPY --chmod=755 examples examples

ARG BAKE_MODEL=
ENV YUE_MODEL=${BAKE_MODEL}
LABEL org.opencontainers.image.title="YuE server" \
      org.opencontainers.image.description="An HTTP inference server for YuE: lyrics in, songs out" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# While a server with YUE_LOADING=startup loads, it answers 503: the start may take as long as a download.
HEALTHCHECK --interval=30s --timeout=10s --start-period=2h --retries=4 \
    CMD ["python3", "-c", "import os, urllib.request as u; \
    port = os.environ.get('AIP_HTTP_PORT') or os.environ.get('PORT') or '8080'; \
    u.build_opener(u.ProxyHandler({})).open(f'http://127.0.0.1:{port}/health', timeout=8)"]
ENTRYPOINT ["./entrypoint.sh"]
CMD ["serve"]
