//go:build docs

package test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// apiSchema has the parts of an OpenAPI schema that the page uses.
type apiSchema struct {
	Ref         string `json:"$ref"`
	Type        string
	Format      string
	Description string
	Default     any
	Properties  map[string]apiSchema
	Required    []string
}

type apiContent struct {
	Content map[string]struct{ Schema apiSchema }
}

type apiParameter struct {
	Name, In, Description string
	Schema                apiSchema
}

type apiMethod struct {
	Summary     string
	Parameters  []apiParameter
	RequestBody apiContent
	Responses   map[string]apiContent
}

// apiItem is a path in OpenAPI.
type apiItem struct {
	Get, Post, Patch, Delete *apiMethod
	Sudo                     bool `json:"x-vault-sudo"`
	Unauthenticated          bool `json:"x-vault-unauthenticated"`
	Create                   bool `json:"x-vault-createSupported"`
	Parameters               []apiParameter
}

// apiRequest is a method of a path, as the engine describes it.
type apiRequest struct {
	apiItem
	apiMethod
	method, path, needs, help string
	schemas                   map[string]apiSchema
}

// describe returns how the engine describes a request, such as "GET creds/{name}".
func (s *server) describe(request string) apiRequest {
	s.t.Helper()
	method, path, _ := strings.Cut(request, " ")
	status, text := s.send(s.root, "GET", "ati/"+examplePath(path)+"?help=1", nil, nil)
	var described struct {
		Help    string
		OpenAPI struct {
			Paths      map[string]apiItem
			Components struct{ Schemas map[string]apiSchema }
		}
	}
	if err := json.Unmarshal([]byte(text), &described); err != nil || status != http.StatusOK {
		s.t.Fatalf("the help of %s returns %d: %v\n%s", path, status, err, text)
	}
	pattern := "/" + path
	if method == "LIST" { // OpenAPI has a path of its own, which ends in a slash
		pattern += "/"
	}
	item := described.OpenAPI.Paths[pattern]
	m := map[string]*apiMethod{"POST": item.Post, "PATCH": item.Patch, "LIST": item.Get, "GET": item.Get, "DELETE": item.Delete}[method]
	needs := map[string]string{"POST": "update", "PATCH": "patch", "LIST": "list", "GET": "read", "DELETE": "delete"}[method]
	if method == "POST" && item.Create {
		needs = "create, update"
	}
	if item.Sudo {
		needs += ", sudo"
	}
	if item.Unauthenticated {
		needs = "none"
	}
	_, help, _ := strings.Cut(described.Help, "## DESCRIPTION\n\n")
	return apiRequest{item, *m, method, path, needs, help, described.OpenAPI.Components.Schemas}
}

// schema returns the schema of a body.
func (r apiRequest) schema(c apiContent) (schema apiSchema) {
	for _, content := range c.Content {
		schema = content.Schema
		if name, ok := strings.CutPrefix(schema.Ref, "#/components/schemas/"); ok {
			schema = r.schemas[name]
		}
	}
	return schema
}

// apiField is a parameter, or a field of a response.
type apiField struct {
	rank             int // 0 for a part of the path, 1 if required, 2 if required for a new entry, 3 for others
	name, form, text string
}

// description is a field's form and text, and the title of the section that has them.
type description struct{ form, text, section string }

// apiPages writes the sections of the page. It describes each field once.
type apiPages struct {
	described map[string][]description // of each name
	complete  map[string]bool          // a section's title with all its parameters, or all fields of its response
	anchored  map[string]bool          // paths that have an anchor
}

// section returns the section of an operation.
func (p *apiPages) section(s *server, o apiOperation, samples map[string]string) string {
	s.t.Helper()
	var requests []apiRequest
	text, shown, table := "\n", "", "| Method | Path | Capabilities |\n| --- | --- | --- |\n"
	for _, request := range strings.Split(o.requests, ", ") {
		r := s.describe(request)
		requests = append(requests, r)
		path := "/ati/" + strings.NewReplacer("{", ":", "}", "").Replace(r.path)
		table += fmt.Sprintf("| `%s` | `%s` | %s |\n", r.method, path, r.needs)
		if samples[request] == "" {
			s.t.Fatalf("apiSession has no sample of %s", request)
		}
		shown += samples[request]
		if id := strings.NewReplacer("/", "", ":", "").Replace(path); !p.anchored[id] {
			p.anchored[id] = true
			text += fmt.Sprintf("<a id=%q></a>\n\n", id)
		}
	}
	text += "### " + o.title + "\n\n"
	if summary := requests[0].Summary; summary != o.title+"." {
		text += codeSpans(summary) + "\n\n"
	}
	for _, begin := range o.help {
		_, after, ok := strings.Cut(requests[0].help, begin)
		if !ok {
			s.t.Fatalf("the help of %s does not contain %q", requests[0].path, begin)
		}
		paragraph, _, _ := strings.Cut(begin+after, "\n\n")
		text += codeSpans(paragraph) + "\n\n"
	}
	return text + table + p.parameters(o.title, requests) + shown + p.response(o.title, requests)
}

// parameters describes the parameters of all requests.
func (p *apiPages) parameters(title string, requests []apiRequest) string {
	fields := map[string]apiField{}
	add := func(rank int, name, text string, schema apiSchema) {
		form := kind(schema) + ": <required>"
		if rank == 3 && strings.Contains(text, "Required for a new") {
			rank = 2
		} else if rank == 3 {
			form = parameterForm(schema)
		}
		fields[name] = apiField{rank, name, form, fieldText(text)}
	}
	for _, r := range requests {
		for _, q := range slices.Concat(r.apiItem.Parameters, r.apiMethod.Parameters) {
			if q.In == "path" {
				add(0, q.Name, q.Description, q.Schema)
			} else if q.In == "query" && q.Name != "list" {
				add(3, q.Name, q.Description, q.Schema)
			}
		}
		body := r.schema(r.RequestBody)
		for name, schema := range body.Properties {
			rank := 3
			if slices.Contains(body.Required, name) {
				rank = 1
			}
			add(rank, name, schema.Description, schema)
		}
	}
	return p.list("Parameters", title, fields)
}

// response describes the fields of the responses of all requests.
func (p *apiPages) response(title string, requests []apiRequest) string {
	fields := map[string]apiField{}
	for _, r := range requests {
		for name, schema := range r.schema(r.Responses["200"]).Properties {
			fields[name] = apiField{3, name, kind(schema), fieldText(schema.Description)}
		}
	}
	return p.list("Response fields", title, fields)
}

// list describes the fields that no section has described before, and refers to the
// section for the others. Fields with one text share an item.
func (p *apiPages) list(heading, title string, fields map[string]apiField) string {
	if len(fields) == 0 {
		return ""
	}
	order := slices.SortedFunc(maps.Values(fields), func(a, b apiField) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.name, b.name))
	})
	var items []apiField
	elsewhere, all := map[string][]string{}, ""
	for _, f := range order {
		if f.rank > 0 {
			all += " " + f.name
		}
		known := p.described[f.name]
		i := slices.IndexFunc(known, func(d description) bool {
			return strings.HasPrefix(d.text, f.text) && (d.form == f.form || heading != "Parameters")
		})
		if i >= 0 && f.rank > 1 {
			elsewhere[known[i].section] = append(elsewhere[known[i].section], "`"+f.name+"`")
			continue
		}
		p.described[f.name] = append(known, description{f.form, f.text, title})
		if i := slices.IndexFunc(items, func(g apiField) bool { return g.form == f.form && g.text == f.text }); i >= 0 {
			items[i].name += "`, `" + f.name
			continue
		}
		items = append(items, f)
	}
	text := "\n#### " + heading + "\n\n"
	for _, f := range items {
		text += fmt.Sprintf("- `%s` `(%s)` - %s\n", f.name, f.form, f.text)
	}
	for first := range elsewhere {
		if p.complete[first+all] {
			elsewhere = map[string][]string{first: {map[bool]string{true: "All", false: "All others"}[len(items) == 0]}}
		}
	}
	for _, first := range slices.Sorted(maps.Keys(elsewhere)) {
		text += fmt.Sprintf("- %s: see [%s](%s).\n", strings.Join(elsewhere[first], ", "), first, "#"+anchor(first))
	}
	p.complete[title+all] = true
	return text
}

// kind returns the type of a field.
func kind(schema apiSchema) string {
	switch schema.Format {
	case "duration":
		return "duration"
	case "date-time":
		return "time"
	}
	return map[string]string{"string": "string", "integer": "int", "boolean": "bool", "array": "list", "object": "map"}[schema.Type]
}

// parameterForm returns the type of an optional parameter and its default.
func parameterForm(schema apiSchema) string {
	value := "<optional>"
	switch d := schema.Default.(type) {
	case string:
		value = fmt.Sprintf("%q", d)
	case float64: // a duration
		value = strings.TrimSuffix((time.Duration(d) * time.Second).String(), "0s")
	}
	if strings.HasSuffix(schema.Description, noDefault) {
		value = "false"
	}
	return kind(schema) + ": " + value
}

// noDefault ends the description of a boolean. The page has the default before it.
const noDefault = " Defaults to false."

// fieldText returns a description for the page, whose introduction says that responses
// have seconds.
func fieldText(description string) string {
	return codeSpans(strings.TrimSuffix(strings.TrimSuffix(description, " In seconds."), noDefault))
}

var code = regexp.MustCompile("`[^`]*`" + // is a code span
	`|[^\s"(]*[<*][^\s",;)]*` + // <version> and tool:*
	`|\{\{[\w.]+\}\}|[\w-]+=[\w/]*\w|\b[\w:]+_[\w:]*\w|\b(?:config/rotate|proxy-env)\b(?:/\w+)*|/call\b` +
	`|\A[a-z]+\b`) // a paragraph begins with the name of a field

// codeSpans makes code spans of names, paths, and words with characters that have a
// meaning in Markdown.
func codeSpans(text string) string {
	return code.ReplaceAllStringFunc(strings.ReplaceAll(text, `"*"`, "*"), func(word string) string {
		if strings.HasPrefix(word, "`") {
			return word
		}
		code := strings.TrimRight(word, ".:")
		return "`" + code + "`" + word[len(code):]
	})
}
