# The daemon of a GPU host, or its commands. docs/install.md says how it is run.
FROM python:3.13-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE requirements-dev.lock ./
COPY systemd systemd
COPY gpulockd gpulockd
RUN python -m venv /opt/gpulockd \
    && /opt/gpulockd/bin/pip install --no-cache-dir --constraint requirements-dev.lock '.[server,fast,notify]'

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="gpulockd" \
      org.opencontainers.image.description="Gives each GPU to one program at a time, in a fair order." \
      org.opencontainers.image.licenses="Apache-2.0"
# The numbers are fixed, so that a host can give the folders to them.
RUN groupadd --gid 10788 gpulockd \
    && useradd --uid 10788 --gid 10788 --home-dir /var/lib/gpulockd --no-create-home --shell /usr/sbin/nologin gpulockd \
    && install -d -o gpulockd -g gpulockd -m 0750 /var/lib/gpulockd \
    && install -d -o gpulockd -g gpulockd -m 0755 /run/gpulockd
COPY --from=build /opt/gpulockd /opt/gpulockd
ENV PATH=/opt/gpulockd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=utility
USER 10788:10788
WORKDIR /var/lib/gpulockd
# The sockets, which programs mount too, and the state with the private store.
VOLUME ["/run/gpulockd", "/var/lib/gpulockd"]
EXPOSE 8788
# A container that stops takes its private store with it, so the store is stopped in order.
ENTRYPOINT ["gpulockd"]
CMD ["serve", "--socket", "/run/gpulockd/", "--state-dir", "/var/lib/gpulockd", "--stop-store"]
