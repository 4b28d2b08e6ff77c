module vault-plugin-secrets-ati/tools/release

go 1.25.7

require github.com/CycloneDX/cyclonedx-go v0.12.0
