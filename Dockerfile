# AIMX in a small image: a virtual environment made in one stage, copied into another that has no build tools.
#
#   docker build -t aimx .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL -v aimx:/var/lib/aimx -p 127.0.0.1:2465:2465 aimx
#
# `make image-check` replays these steps without a container engine.
ARG PYTHON=python:3.11.13-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY aimx aimx
RUN python -m venv /opt/aimx && /opt/aimx/bin/pip install . && /opt/aimx/bin/pip uninstall --yes pip setuptools

FROM ${PYTHON}
RUN groupadd --gid 10001 aimx && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin aimx \
    && install --directory --owner=aimx --group=aimx --mode=0700 /var/lib/aimx /scrape
COPY --from=build /opt/aimx /opt/aimx
# Nothing outside the volume is ever written; inside the container every door has to listen beyond loopback.
ENV PATH=/opt/aimx/bin:$PATH PYTHONDONTWRITEBYTECODE=1 \
    AIMX_DATA=/var/lib/aimx \
    AIMX_LISTEN__SMTP=0.0.0.0:2525 AIMX_LISTEN__SMTPS=0.0.0.0:2465 \
    AIMX_LISTEN__IMAP=0.0.0.0:2143 AIMX_LISTEN__IMAPS=0.0.0.0:2993 \
    AIMX_LISTEN__HTTP=0.0.0.0:8443
USER 10001:10001
WORKDIR /var/lib/aimx
VOLUME /var/lib/aimx
EXPOSE 2525 2465 2143 2993 8443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=40s CMD ["aimx", "doctor", "--ready"]
ENTRYPOINT ["aimx"]
CMD ["serve"]
