"""Hooks for MkDocs that build the site from the Markdown of the repository.

They add the pages outside docs/ and the source files that pages link to, translate the
links between them, and check that MkDocs reads each page as CommonMark does.
"""

import logging
import os.path
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from markdown_it import MarkdownIt
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[2]
LANGUAGES = {"hcl": "terraform", "service": "ini", "socket": "ini"}  # where the lexer has another name

log = logging.getLogger("mkdocs.plugins.site")  # strict mode fails on its warnings
places = {}  # of each file and directory on the site, by path in the repository: URI and anchor
current = None  # path in the repository of the page that is being rendered


def slug(heading, separator="-"):
    """Return the anchor of a heading as GitHub generates it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", separator)


def linked_paths():
    """Return the files and directories of the repository that the pages link to."""
    paths = set()
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            path = Path(os.path.normpath(page.parent / link))
            if path.exists() and path.is_relative_to(ROOT):
                paths.add(path)
    return sorted(paths)


def source(path):
    """Return a file as a fenced code block."""
    language = path.suffix[1:]
    return f"````{LANGUAGES.get(language, language)}\n{path.read_text().rstrip()}\n````\n"


def on_files(files, config):
    def add(name, uri, **content):
        places[name] = uri
        files.append(File.generated(config, uri, inclusion=InclusionLevel.NOT_IN_NAV, **content))

    for file in files:
        places[f"docs/{file.src_uri}"] = file.src_uri
    for page in ROOT.glob("*.md"):
        uri = "index.md" if page.name == "README.md" else page.name
        places[page.name] = uri
        files.append(File.generated(config, uri, abs_src_path=str(page)))
    linked = linked_paths()
    for directory in filter(Path.is_dir, linked):
        name = directory.relative_to(ROOT).as_posix()
        contents = sorted(filter(Path.is_file, directory.iterdir()))
        add(name, f"{name}.md", content="\n".join([f"# {name}\n", *(f"## {path.name}\n\n{source(path)}" for path in contents)]))
        places.update({f"{name}/{path.name}": f"{name}.md#{slug(path.name)}" for path in contents})
    for path in filter(Path.is_file, linked):
        name = path.relative_to(ROOT).as_posix()
        if name not in places and path.suffix == ".md":
            add(name, name, abs_src_path=str(path))
        elif name not in places:
            add(name, f"{name}.md", content=f"# {name}\n\n{source(path)}")
    return files


class Items(Preprocessor):
    """Ends a paragraph of a list item before the next item, as CommonMark does."""

    def run(self, lines):
        separated, indented = [], False
        for line in lines:
            if not separated or not separated[-1]:
                indented = line.startswith("  ")
            elif indented and re.match(r"([-*]|\d+\.) ", line):
                separated.append("")
            separated.append(line)
        return separated


class Translate(Treeprocessor):
    """Translates links, which are relative to files of the repository, and pipes in tables."""

    def run(self, tree):
        for tag, attribute in ("a", "href"), ("img", "src"):
            for element in tree.iter(tag):
                element.set(attribute, self.translate(element.get(attribute)))
        for code in tree.iterfind(".//table//code"):
            code.text = code.text.replace(r"\|", "|")

    def translate(self, link):
        url = urlsplit(link)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(current), url.path))
        if url.scheme or not url.path or path not in places:
            return link
        target, _, anchor = places[path].partition("#")
        fragment = url.fragment or anchor
        relative = posixpath.relpath(target, posixpath.dirname(places[current]) or ".")
        return f"{relative}#{fragment}" if fragment else relative


class Repository(Extension):
    def extendMarkdown(self, md):
        md.tab_length = 2  # CommonMark's lists need less indentation than four spaces
        md.build_parser()
        md.preprocessors.register(Items(md), "items", 22)  # after fenced code
        md.treeprocessors.register(Translate(md), "translate", 1)  # before MkDocs resolves links


def on_config(config):
    config.markdown_extensions.insert(0, Repository())  # before others extend the parser
    config.mdx_configs["toc"]["slugify"] = slug
    return config


def on_page_markdown(markdown, page, **_):
    global current
    current = next(path for path, uri in places.items() if uri == page.file.src_uri)


class Outline(HTMLParser):
    """The text of a page without white space, with the tags that a reader sees."""

    TAGS = {"blockquote", "code", "em", "h1", "h2", "h3", "h4", "img", "li", "ol", "pre", "strong", "table", "td", "th", "tr", "ul"}

    def __init__(self, html):
        super().__init__()
        self.text, self.hidden = "", False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.hidden = ("class", "headerlink") in attributes
        if tag in self.TAGS:
            self.text += f"<{tag}>"

    def handle_data(self, data):
        if not self.hidden:
            self.text += "".join(data.split())

    def handle_endtag(self, tag):
        self.hidden = False


def on_page_content(html, page, **_):
    expected = Outline(MarkdownIt().enable(["table", "strikethrough"]).render(page.markdown)).text
    actual = Outline(html).text
    if actual != expected:
        start = max(0, len(os.path.commonprefix([actual, expected])) - 30)
        log.warning("%s looks different in CommonMark: %r, not %r; write it in a way that both read alike",
                    current, expected[start : start + 80], actual[start : start + 80])
