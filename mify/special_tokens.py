"""The special tokens and their ids: the one place where they are listed.

They come first in the vocabulary, so that an id is the same at any vocabulary size. The FIM and chat names are those
that llama.cpp, editors and chat clients recognise by themselves. New tokens take the place of spares; an id that was
once given is never given to another name.
"""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
FIM_PREFIX = "<|fim_prefix|>"
FIM_MIDDLE = "<|fim_middle|>"
FIM_SUFFIX = "<|fim_suffix|>"
FIM_PAD = "<|fim_pad|>"
REPO_NAME = "<|repo_name|>"
FILE_SEP = "<|file_sep|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

NAMED = (
    END_OF_TEXT,
    PAD,
    FIM_PREFIX,
    FIM_MIDDLE,
    FIM_SUFFIX,
    FIM_PAD,
    REPO_NAME,
    FILE_SEP,
    IM_START,
    IM_END,
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)

# Names as curation writes them in a document's `language`, in the order of their ids: append only.
LANGUAGES = (
    "python",
    "c",
    "cpp",
    "csharp",
    "java",
    "javascript",
    "typescript",
    "go",
    "rust",
    "ruby",
    "php",
    "swift",
    "kotlin",
    "scala",
    "shell",
    "powershell",
    "sql",
    "html",
    "css",
    "markdown",
    "restructuredtext",
    "text",
    "json",
    "yaml",
    "toml",
    "xml",
    "ini",
    "makefile",
    "cmake",
    "dockerfile",
    "cuda",
    "fortran",
    "julia",
    "r",
    "matlab",
    "cython",
    "perl",
    "lua",
    "haskell",
    "ocaml",
    "fsharp",
    "elixir",
    "erlang",
    "clojure",
    "lisp",
    "scheme",
    "dart",
    "zig",
    "nim",
    "d",
    "assembly",
    "verilog",
    "vhdl",
    "tex",
    "jupyter",
    "protobuf",
    "graphql",
    "vue",
    "svelte",
    "groovy",
    "objective-c",
    "pascal",
    "ada",
    "prolog",
    "lean",
    "coq",
    "agda",
    "solidity",
    "terraform",
    "nix",
    "vim",
    "awk",
    "jinja",
    "scss",
    "diff",
    "batch",
)

NUM_SPECIAL = 128
"""Ids 0 to 127 are special; byte-pair tokens begin at 128."""

FIRST_LANGUAGE = len(NAMED)


def language_token(language: str) -> str | None:
    """`<|lang:NAME|>`, or None for a language that has no token."""
    return f"<|lang:{language}|>" if language in LANGUAGES else None


def special_tokens() -> list[str]:
    """All 128 names; a token's place is its id."""
    tokens = [*NAMED, *(f"<|lang:{language}|>" for language in LANGUAGES)]
    tokens += [f"<|spare_{index}|>" for index in range(len(tokens), NUM_SPECIAL)]
    return tokens
