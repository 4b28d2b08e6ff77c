package main

import (
	"bytes"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/CycloneDX/cyclonedx-gomod/pkg/generate/bin"
	"github.com/rs/zerolog"
)

// sbom returns a CycloneDX document of the modules that a program's binary is linked
// from. It has no serial number, and the date of the source, so the same binary always
// has the same document.
func sbom(program, binary, sha256, version string, date time.Time, modules []module) ([]byte, error) {
	generator, err := bin.NewGenerator(binary, bin.WithLogger(zerolog.Nop()), bin.WithIncludeStdlib(true),
		bin.WithVersionOverride(version), bin.WithShortPURLS(true))
	if err != nil {
		return nil, err
	}
	bom, err := generator.Generate()
	if err != nil {
		return nil, err
	}
	bom.Metadata.Timestamp = date.Format(time.RFC3339)
	// The generator names the module, which has several programs.
	bom.Metadata.Component.Name = program
	bom.Metadata.Component.PackageURL += "#cmd/" + program
	bom.Metadata.Component.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sha256}}
	var refs []string
	// The generator keeps the order of the binary, which sameModules has compared.
	for i, m := range modules {
		c := &(*bom.Components)[i]
		c.PackageURL = strings.ReplaceAll(c.PackageURL, "+", "%2B")
		var licenses cdx.Licenses
		for _, id := range m.licenses {
			licenses = append(licenses, cdx.LicenseChoice{License: &cdx.License{ID: id}})
		}
		c.Evidence = &cdx.Evidence{Licenses: &licenses}
		refs = append(refs, c.BOMRef)
	}
	// The generator's list lacks the standard library.
	bom.Dependencies = &[]cdx.Dependency{{Ref: bom.Metadata.Component.BOMRef, Dependencies: &refs}}
	var b bytes.Buffer
	err = cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
	return b.Bytes(), err
}
