"""The language of a file, by its name first and by its first line where the name says nothing.

`identify` knows the names, and pygments those that it does not; this module turns their tags into one language per
file and says which domain that is. What only the content tells is asked in `mify.curation.language_guess`.
Languages are named as in `mify.special_tokens.LANGUAGES`, wherever they have a token there.
"""

from __future__ import annotations

import functools

UNKNOWN = "unknown"

# Tag of `identify` → language, the most specific first: a notebook is tagged json as well, a Vue file html.
LANGUAGE_OF_TAG = {
    "python": "python", "python3": "python", "pyi": "python", "cython": "cython", "cuda": "cuda", "c": "c",
    "c++": "cpp", "objective-c": "objective-c", "c#": "csharp", "java": "java", "kotlin": "kotlin", "scala": "scala",
    "groovy": "groovy", "clojure": "clojure", "vue": "vue", "svelte": "svelte", "jsx": "javascript",
    "javascript": "javascript", "tsx": "typescript", "ts": "typescript", "go": "go", "rust": "rust", "swift": "swift",
    "zig": "zig", "nim": "nim", "dart": "dart", "php": "php", "ruby": "ruby", "perl": "perl", "lua": "lua", "r": "r",
    "julia": "julia", "fortran": "fortran", "haskell": "haskell", "ocaml": "ocaml", "erlang": "erlang",
    "elixir": "elixir", "scheme": "scheme", "f#": "fsharp", "pascal": "pascal", "vhdl": "vhdl", "verilog": "verilog",
    "system-verilog": "verilog", "solidity": "solidity", "sql": "sql", "powershell": "powershell", "batch": "batch",
    "bash": "shell", "zsh": "shell", "ksh": "shell", "dash": "shell", "sh": "shell", "shell": "shell", "fish": "shell",
    "csh": "shell", "makefile": "makefile", "cmake": "cmake", "dockerfile": "dockerfile", "terraform": "terraform",
    "nix": "nix", "proto": "protobuf", "graphql": "graphql", "scss": "scss", "css": "css", "jinja": "jinja",
    "vim": "vim", "awk": "awk", "asm": "assembly", "lean": "lean", "diff": "diff", "tex": "tex", "markdown": "markdown",
    "mdx": "markdown", "rst": "restructuredtext", "jupyter": "jupyter", "html": "html", "xhtml": "html",
    "svg": "xml", "xml": "xml", "json": "json", "yaml": "yaml", "toml": "toml", "ini": "ini", "csv": "csv",
    "tsv": "tsv", "pofile": "pofile", "plain-text": "text",
}  # fmt: skip
# Suffixes of which identify knows nothing, or says less than what people mean.
_SUFFIXES = {
    ".cu": "cuda", ".cuh": "cuda", ".h": "c", ".lisp": "lisp", ".lsp": "lisp", ".el": "lisp", ".rkt": "scheme",
    ".adb": "ada", ".ads": "ada", ".agda": "agda", ".coq": "coq", ".d": "d", ".mat": "matlab", ".pro": "prolog",
    ".wat": "assembly", ".pxi": "cython",
}  # fmt: skip

PROSE = frozenset(["text", "markdown", "restructuredtext", "tex"])
# StarCoder2's markup and data languages: only a line over 100,000 characters is too long in them.
MARKUP_AND_DATA = frozenset([*PROSE, "html", "json", "xml", "yaml", "toml", "csv", "tsv", "pofile"])
# Formats of which a file over 512 lines is data, not code.
DATA = frozenset(["json", "yaml", "toml", "csv", "tsv", "ini", "pofile"])


def language_of(path: str, text: str = "") -> str:
    """The language of a file, "text" for plain text, "unknown" where neither the name nor the first line tells.

    Args:
        path: the path or name; only its last part counts.
        text: the content; of it only a `#!` line is read, and only where the name says nothing.
    """
    language = _of_name(path.replace("\\", "/").rsplit("/", 1)[-1])
    if language == UNKNOWN and text.startswith("#!"):
        return _of_shebang(text.partition("\n")[0])
    return language


def domain_of(language: str) -> str:
    """The domain of a language: prose is "text", everything else "code"."""
    return "text" if language in PROSE else "code"


def is_binary_name(path: str) -> bool:
    """Whether the name alone says that the file holds no text (an image, an archive, an object file)."""
    from identify import identify

    return "binary" in identify.tags_from_filename(path)


@functools.lru_cache(maxsize=65536)
def _of_name(name: str) -> str:
    from identify import identify

    dot = name.rfind(".")
    suffix = name[dot:].lower() if dot > 0 else ""
    language = _SUFFIXES.get(suffix) or _of_tags(identify.tags_from_filename(name))
    if language == UNKNOWN and not identify.tags_from_filename(name) & {"binary", "image"}:
        from mify.curation.language_guess import language_by_name

        return language_by_name(name) or UNKNOWN
    return language


def _of_shebang(line: str) -> str:
    from identify import identify

    words = line[2:].split()
    if words and words[0].endswith("/env"):
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    return _of_tags(identify.tags_from_interpreter(words[0])) if words else UNKNOWN


def _of_tags(tags: set[str]) -> str:
    return next((language for tag, language in LANGUAGE_OF_TAG.items() if tag in tags), UNKNOWN)
