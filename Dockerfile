# Images of the plugin and, with --target ati-guard, of the guard. They are built from
# release archives, so their binaries have the SHA-256 that the release lists.
# An automated test compares the paths below with the archives.
#   VERSION     version of the release
#   TARGETARCH  amd64 or arm64; set by BuildKit
#   ATI_IMAGE   your image of the ATI proxy, for the guard
#   RUN_AS      user ID of the plugin (default: 65534); on Docker, 0 if Vault uses mlock
ARG ATI_IMAGE=scratch

FROM scratch AS ati-guard-archive
ARG VERSION
ARG TARGETARCH
ADD ati-guard_${VERSION}_linux_${TARGETARCH}.tar.gz /

# The ATI proxy behind the guard:
#
#   docker build -f Dockerfile --target ati-guard --build-arg VERSION=v0.1.0 \
#     --build-arg ATI_IMAGE=registry.example.com/ati:0.7.15 \
#     -t registry.example.com/ati-guard:v0.1.0 dist
#
# ATI_IMAGE must have /usr/local/bin/ati, and a user ati that owns /var/lib/ati. Without
# ATI_IMAGE, the image has only the guard, for COPY --from in a Dockerfile of yours.
# Tested by hand with Buildah, and in a chroot with only the capabilities below.
FROM ${ATI_IMAGE} AS ati-guard
ARG VERSION
ARG TARGETARCH
COPY --from=ati-guard-archive /ati-guard_${VERSION}_linux_${TARGETARCH}/ati-guard /usr/local/bin/
COPY --from=ati-guard-archive /ati-guard_${VERSION}_linux_${TARGETARCH}/licenses /licenses
# The guard needs root, with the capabilities SETUID, SETGID, and KILL, to run the proxy as
# another user. As the same user, the proxy could read the guard's login to Vault.
USER 0
ENTRYPOINT ["/usr/local/bin/ati-guard"]
CMD ["-config", "/etc/ati-guard/guard.json"]

FROM scratch AS vault-plugin-secrets-ati-archive
ARG VERSION
ARG TARGETARCH
ADD vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}.tar.gz /

# The plugin, for Vault's containerized plugins and for OpenBao's plugins from OCI images:
#
#   docker build -f Dockerfile --build-arg VERSION=v0.1.0 \
#     -t registry.example.com/vault-plugin-secrets-ati:0.1.0 \
#     -t registry.example.com/vault-plugin-secrets-ati:v0.1.0 dist
#
# Vault expects the tag without the v, OpenBao the tag with it. Tested by hand with
# Buildah, and with Vault 1.21 on Podman 4.3 and runc. Not tested with Docker, gVisor,
# or OpenBao.
FROM scratch
ARG VERSION
ARG TARGETARCH
ARG RUN_AS=65534
# OpenBao expects the binary in the root directory.
COPY --from=vault-plugin-secrets-ati-archive /vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}/vault-plugin-secrets-ati /
COPY --from=vault-plugin-secrets-ati-archive /vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}/licenses /licenses
# No group: it defaults to 0, and Vault adds its own group.
USER ${RUN_AS}
ENTRYPOINT ["/vault-plugin-secrets-ati"]
