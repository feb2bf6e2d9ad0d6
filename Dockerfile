# An image whose command is `reinflow`, for machines without a GPU and with one:
#
#   docker build -t reinflow --build-arg TORCH_INDEX=URL .   # URL of an index with CPU builds of torch
#   docker build -t reinflow:cuda .                          # torch's default build, for CUDA, of several GB
#   docker run --rm -v "$PWD/work:/work" reinflow quickstart
#   docker run --rm --gpus all -v "$PWD/work:/work" reinflow:cuda finetune --sim_backend physx_cuda --help
#
# Neither image has been built yet: the tests only read this file. Its steps are those of the Makefile, which they run.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=""
# the NVIDIA runtime then also brings the driver's Vulkan part, which draws pictures
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=all PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
COPY .ci/vulkan /src/.ci/vulkan
RUN /src/.ci/vulkan && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint constraints.txt torch
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY nets nets
COPY reinflow reinflow
COPY *.py ./
RUN pip install --constraint constraints.txt ".[export]" \
    && pip install --constraint constraints.txt --no-deps --force-reinstall opencv-python-headless

WORKDIR /work
ENTRYPOINT ["reinflow"]
CMD ["--help"]
