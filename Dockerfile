# dino_dense in a container, from the lock file. On a CPU, or on a GPU with NVIDIA's container toolkit: the packages bring
# CUDA's libraries, so one image serves both.
#
#   docker build -t dino_dense .
#   docker run --rm -v "$PWD/runs:/workspace/runs" dino_dense quickstart
#   docker run --rm --gpus all --ipc=host -v DATA:/data:ro -v "$PWD/runs:/workspace/runs" dino_dense davis --ckpt X --data /data/DAVIS
#
# --ipc=host: loader processes hand over batches in shared memory, of which a container has 64 MB otherwise.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# libgl1 and libglib2.0: opencv-python loads them. g++: --compile builds its kernels with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dino_dense
COPY requirements.lock ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir uv \
    && /opt/venv/bin/uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python --require-hashes -r requirements.lock
COPY . .
RUN /opt/venv/bin/uv pip install --no-cache --no-deps --python /opt/venv/bin/python .

ENV PATH=/opt/venv/bin:$PATH DINO_DENSE_CACHE=/workspace/runs/cache
WORKDIR /workspace
ENTRYPOINT ["dino-dense"]
