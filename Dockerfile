# Image for Vault's containerized plugins and for OpenBao's plugins from OCI images.
# It is built from a release archive, so its binary has the SHA-256 that the release
# lists:
#
#   make release
#   docker build -f Dockerfile --build-arg VERSION=v0.1.0 \
#     -t registry.example.com/vault-plugin-secrets-ati:0.1.0 \
#     -t registry.example.com/vault-plugin-secrets-ati:v0.1.0 dist
#
# Vault expects the tag without the v, OpenBao the tag with it. Tested by hand with
# Buildah, and with Vault 1.21 on Podman 4.3 and runc. Not tested with Docker, gVisor,
# or OpenBao. An automated test compares the paths below with an archive.
#   VERSION     version of the release
#   TARGETARCH  amd64 or arm64; set by BuildKit
#   RUN_AS      user ID (default: 65534); on Docker, 0 if Vault uses mlock
FROM scratch AS archive
ARG VERSION
ARG TARGETARCH
ADD vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}.tar.gz /

FROM scratch
ARG VERSION
ARG TARGETARCH
ARG RUN_AS=65534
# OpenBao expects the binary in the root directory.
COPY --from=archive /vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}/vault-plugin-secrets-ati /
COPY --from=archive /vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}/licenses /licenses
# No group: it defaults to 0, and Vault adds its own group.
USER ${RUN_AS}
ENTRYPOINT ["/vault-plugin-secrets-ati"]
