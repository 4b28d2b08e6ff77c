# The plugin in an image, for Vault's containerized plugins and for OpenBao's
# plugins out of images. It is made of the archives of a release, so that the
# binary in it has the SHA-256 that the release says:
#
#   make release
#   docker build -f Dockerfile --build-arg VERSION=v0.1.0 \
#     -t registry.example.com/vault-plugin-secrets-ati:0.1.0 \
#     -t registry.example.com/vault-plugin-secrets-ati:v0.1.0 dist
#
# Vault looks for the tag without the v, OpenBao for the one with it. Tried by hand
# with Buildah, and with Vault 1.21 on Podman 4.3 and runc; neither with Docker, nor
# with gVisor, nor with OpenBao itself. A test holds its names against an archive's.
#   VERSION     of the release
#   TARGETARCH  amd64 or arm64; set by BuildKit
#   RUN_AS      the user (65534); on Docker 0, where Vault locks its memory (mlock)
FROM scratch AS archive
ARG VERSION
ARG TARGETARCH
ADD vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}.tar.gz /

FROM scratch
ARG VERSION
ARG TARGETARCH
ARG RUN_AS=65534
# In the image's root, where OpenBao looks for it.
COPY --from=archive /vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}/vault-plugin-secrets-ati /
COPY --from=archive /vault-plugin-secrets-ati_${VERSION}_linux_${TARGETARCH}/licences /licences
# Without a group: that is 0 then, and Vault adds its own.
USER ${RUN_AS}
ENTRYPOINT ["/vault-plugin-secrets-ati"]
