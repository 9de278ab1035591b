# CPU image: docker build -t pfungst . && docker run --network none pfungst demo
FROM python:3.12-slim AS build
RUN pip install --no-cache-dir uv
COPY . /src
RUN uv venv /opt/pfungst \
 && uv pip install --python /opt/pfungst/bin/python --no-cache --torch-backend=cpu '/src[label,pool]' \
 && find /opt/pfungst -name '__pycache__' -prune -exec rm -rf {} +

FROM python:3.12-slim
COPY --from=build /opt/pfungst /opt/pfungst
ENV PATH=/opt/pfungst/bin:$PATH MPLCONFIGDIR=/tmp
RUN useradd --create-home pfungst
USER pfungst
WORKDIR /home/pfungst
ENTRYPOINT ["pfungst"]
CMD ["--help"]
