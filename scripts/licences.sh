#!/usr/bin/env bash
# Prints docs/licences.md: the licence of each module that the plugin's binary is
# linked from, by the words of the module's own file. An unknown licence fails.
set -euo pipefail
unset CDPATH
export LC_ALL=C # far faster on long texts

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# classify FILE... names the licences that the files hold.
classify() {
  local text found=()
  text=$(cat "$@" | tr -s ' \t\r\n' ' ')
  if [[ $text == *"Mozilla Public License"*"ersion 2.0"* ]]; then found+=(MPL-2.0); fi
  if [[ $text == *"Apache License"*"Version 2.0"* ]]; then found+=(Apache-2.0); fi
  if [[ $text == *"Permission is hereby granted, free of charge"* ]]; then found+=(MIT); fi
  if [[ $text == *"Permission to use, copy, modify, and/or distribute this software"* || $text == *"Permission to use, copy, modify, and distribute this software"* ]]; then found+=(ISC); fi
  if [[ $text == *"Redistribution and use in source and binary forms"* ]]; then
    if [[ $text == *"Neither the name"* ]]; then found+=(BSD-3-Clause); else found+=(BSD-2-Clause); fi
  fi
  echo "${found[*]}"
}

cat <<'MD'
# Licences of what the plugin is linked from

Written by `make licences`, and checked by `make test`. Where a module names
several licences, all are listed: it may offer a choice, or have parts.

| module | version | licence |
| --- | --- | --- |
MD
failed=0
row() { # row <module> <version> <directory>
  local files=() file licence
  for file in "$3"/*; do
    case $(basename "$file" | tr '[:upper:]' '[:lower:]') in
      *.docs) ;; # of documents, which are in no binary
      licen[cs]e | licen[cs]e.* | licen[cs]e-* | copying | copying.*) files+=("$file") ;;
    esac
  done
  licence=
  if [ ${#files[@]} -gt 0 ]; then licence=$(classify "${files[@]}"); fi
  if [ -z "$licence" ]; then
    echo "the licence of $1 $2 is not known" >&2
    failed=1
  fi
  echo "| $1 | $2 | ${licence// /, } |"
}

# For one platform, so that the page is the same everywhere.
export GOOS=linux GOARCH=amd64 CGO_ENABLED=0 GOFLAGS=-mod=readonly
modules=$(go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/... | sort -u)
row "Go's standard library" "as built with" "$(go env GOROOT)"
while read -r module version dir; do
  row "$module" "$version" "$dir"
done <<<"$modules"
exit $failed
