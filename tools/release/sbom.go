package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// sbom is a CycloneDX document of what the binary says it is linked from. It has
// no serial number, and the date of the source: the same binary has the same one.
func sbom(info *debug.BuildInfo, modules []module, version string, date time.Time, sum [sha256.Size]byte) ([]byte, error) {
	h1 := map[string]string{}
	for _, d := range info.Deps {
		h1[d.Path] = d.Sum
	}
	var components []cdx.Component
	var refs []string
	for _, m := range modules {
		purl := "pkg:golang/" + m.path + "@" + url.QueryEscape(m.version)
		var licences cdx.Licenses
		for _, id := range m.licences {
			licences = append(licences, cdx.LicenseChoice{License: &cdx.License{ID: id}})
		}
		c := cdx.Component{
			Type: cdx.ComponentTypeLibrary, BOMRef: purl, PackageURL: purl,
			Name: m.path, Version: m.version, Scope: cdx.ScopeRequired,
			// What was found in the files, and by nobody's word.
			Evidence: &cdx.Evidence{Licenses: &licences},
		}
		// As go.sum has it: of the list of the module's files and their sums.
		if b64, ok := strings.CutPrefix(h1[m.path], "h1:"); ok {
			b, err := base64.StdEncoding.DecodeString(b64)
			if err != nil {
				return nil, fmt.Errorf("the sum of %s: %w", m.path, err)
			}
			c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(b)}}
		}
		components, refs = append(components, c), append(refs, purl)
	}
	self := "pkg:generic/" + name + "@" + url.QueryEscape(version)
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{
		Timestamp: date.Format(time.RFC3339),
		Component: &cdx.Component{
			Type: cdx.ComponentTypeApplication, BOMRef: self, PackageURL: self,
			Name: name, Version: version,
			Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
		},
		Properties: &[]cdx.Property{
			{Name: "go:version", Value: info.GoVersion},
			{Name: "go:os", Value: setting(info, "GOOS")},
			{Name: "go:arch", Value: setting(info, "GOARCH")},
		},
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: self, Dependencies: &refs}}
	var b bytes.Buffer
	encoder := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true)
	if err := encoder.EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
