# A server of the captioner in the package, on CPU:
#
#   docker build -t fusion-captioner .
#   docker run --rm -p 8000:8000 fusion-captioner
#
# torch's usual package for Linux brings several GB for GPUs. An index of CPU packages avoids them:
# docker build --build-arg PIP_EXTRA_INDEX_URL=... -t fusion-captioner .
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL
WORKDIR /app
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY fusion_captioner fusion_captioner
RUN pip install --no-cache-dir -c constraints.txt torch \
    && pip install --no-cache-dir -c constraints.txt '.[serve,onnx,search]'

RUN useradd --create-home captioner
USER captioner
WORKDIR /home/captioner

EXPOSE 8000
HEALTHCHECK --start-period=60s CMD \
    python -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=5)"
ENTRYPOINT ["fusion-captioner", "serve", "--host", "0.0.0.0"]
