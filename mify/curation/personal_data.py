"""Secrets and personal data: found by patterns, replaced by a placeholder or a reason to drop the document.

Patterns are anchored on what is cheap to find (a fixed prefix, an `@`, a quote), so that most text is never matched.
"""

from __future__ import annotations

import io
import ipaddress
import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mify.curation.extras import Use, found
from mify.curation.quality import syntax_problem

Action = Literal["redact", "drop", "keep"]


@dataclass(frozen=True)
class PersonalDataRules:
    """What is done with each kind.

    Args:
        email: e-mail addresses; replaced by <EMAIL>. Addresses of documentation (example.com) and robots stay.
        key: keys, tokens and passwords; replaced by <KEY>.
        private_key: PEM blocks of private keys; replaced by <KEY>.
        ip_address: public IPv4 addresses; replaced by <IP_ADDRESS>. Kept by default: 8.4.1.2 may be a version.
        detect_secrets: whether the package detect-secrets is asked about lines on which a pattern hits: it knows the
            keys of more services, and what only looks like one (`mify.curation.known_secrets`).
    """

    email: Action = "redact"
    key: Action = "redact"
    private_key: Action = "redact"
    ip_address: Action = "keep"
    detect_secrets: Use = "installed"

    @property
    def asks_detect_secrets(self) -> bool:
        """Whether it is asked here."""
        return self.key != "keep" and self.detect_secrets != "off" and found("detect_secrets")


class Match(NamedTuple):
    """A place in a text: its kind, start and end in characters."""

    kind: str
    start: int
    end: int


_PLACEHOLDERS = {"email": "<EMAIL>", "key": "<KEY>", "private_key": "<KEY>", "ip_address": "<IP_ADDRESS>"}

# A fixed prefix, and what must follow it for the whole to be a token of that service.
_TOKENS = {
    "AKIA": r"AKIA[0-9A-Z]{16}\b",
    "ASIA": r"ASIA[0-9A-Z]{16}\b",
    "ghp_": r"ghp_[A-Za-z0-9]{36}\b",
    "gho_": r"gho_[A-Za-z0-9]{36}\b",
    "ghs_": r"ghs_[A-Za-z0-9]{36}\b",
    "github_pat_": r"github_pat_[A-Za-z0-9_]{22,}",
    "glpat-": r"glpat-[A-Za-z0-9_-]{20,}",
    "xoxb-": r"xoxb-[0-9A-Za-z-]{20,}",
    "xoxp-": r"xoxp-[0-9A-Za-z-]{20,}",
    "AIza": r"AIza[0-9A-Za-z_-]{35}",
    "sk_live_": r"sk_live_[0-9A-Za-z]{20,}",
    "sk-": r"\bsk-[A-Za-z0-9_-]{32,}",
    "hf_": r"\bhf_[A-Za-z0-9]{30,}\b",
    "npm_": r"npm_[A-Za-z0-9]{36}\b",
    "pypi-": r"pypi-AgE[A-Za-z0-9_-]{50,}",
    "eyJ": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
}
_TOKEN_PATTERNS = {prefix: re.compile(pattern) for prefix, pattern in _TOKENS.items()}
_PRIVATE_KEY = re.compile(r"-----BEGIN ([A-Z ]{0,20}PRIVATE KEY-----)")
_QUOTED = re.compile(r"[\"']([A-Za-z0-9+/_=.-]{20,})[\"']")
_ASSIGNED = re.compile(
    r"(?i)(?:api_?key|apikey|secret|access_?key|auth_?token|access_?token|passw(?:or)?d|client_?secret)\w*[\"']?\s*[:=]\s*$"
)
_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+([A-Za-z]{2,24})(?![A-Za-z0-9_(\[])")
_LOCAL = re.compile(r"[A-Za-z0-9._%+-]+$")
# A matrix product reads `a@b.mean`: so only endings under which people have addresses.
_DOMAINS = frozenset(
    [
        "com",
        "org",
        "net",
        "edu",
        "gov",
        "mil",
        "int",
        "info",
        "biz",
        "io",
        "ai",
        "dev",
        "me",
        "co",
        "us",
        "uk",
        "ca",
        "de",
        "fr",
        "nl",
        "be",
        "ch",
        "at",
        "se",
        "no",
        "dk",
        "fi",
        "pl",
        "cz",
        "it",
        "es",
        "pt",
        "ru",
        "ua",
        "by",
        "jp",
        "cn",
        "kr",
        "in",
        "au",
        "nz",
        "br",
        "mx",
        "ar",
        "cl",
        "za",
        "il",
        "tr",
        "gr",
        "hu",
        "ro",
        "ie",
        "is",
        "lv",
        "lt",
        "ee",
        "sk",
        "si",
        "hr",
        "eu",
        "asia",
        "tech",
        "cloud",
        "app",
        "name",
        "email",
        "tw",
        "hk",
        "sg",
        "my",
        "th",
        "vn",
        "ph",
        "id",
        "ir",
    ]
)
_NOT_PERSONAL = re.compile(
    r"(?i)(@([a-z0-9-]+\.)*(example|test|invalid|localhost|domain|foo|bar|company|acme)\.[a-z]+$|^(git|hg|svn|user|users|"
    r"noreply|no-reply|nobody|name|foo|bar|username|email|example|you|me|someone|root|admin|info|support|sales|security)"
    r"@)"
)
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")


KINDS = ("private_key", "key", "email", "ip_address")


def find_personal_data(text: str, kinds: Sequence[str] = KINDS, detect_secrets: bool = False) -> list[Match]:
    """All places of the given kinds, in their order, none inside another. `detect_secrets`: ask it about keys, too."""
    finders = {"private_key": _private_keys, "key": _keys, "email": _emails, "ip_address": _addresses}
    matches = [match for kind in kinds for match in finders[kind](text)]
    if detect_secrets and "key" in kinds:
        from mify.curation.known_secrets import find_secrets, looks_harmless

        matches = [item for item in matches if item.kind != "key" or not looks_harmless(text[item.start : item.end])]
        matches += [Match("key", start, end) for start, end in find_secrets(text)]
    taken: list[Match] = []
    # Of two that begin at one place the graver: "jane:PASSWORD@host" holds a key, not an address.
    for match in sorted(matches, key=lambda match: (match.start, KINDS.index(match.kind), -match.end)):
        if not taken or match.start >= taken[-1].end:
            taken.append(match)
    return taken


def apply_rules(text: str, language: str, rules: PersonalDataRules) -> tuple[str, Counter[str], Match | None]:
    """The text with placeholders, what was replaced by kind, and the match that asks for the document to be dropped.

    Python that parsed still parses: where a placeholder would break it, only strings and comments are redacted.
    """
    kinds = [kind for kind in KINDS if getattr(rules, kind) != "keep"]
    matches = find_personal_data(text, kinds, rules.asks_detect_secrets)
    dropped = next((match for match in matches if getattr(rules, match.kind) == "drop"), None)
    if dropped is not None or not matches:
        return text, Counter(), dropped
    redacted = _replace(text, matches)
    if language == "python" and syntax_problem(redacted) is not None and syntax_problem(text) is None:
        matches = _in_strings_and_comments(text, matches)
        redacted = _replace(text, matches)
    return redacted, Counter(match.kind for match in matches), None


def _replace(text: str, matches: list[Match]) -> str:
    parts, place = [], 0
    for match in matches:
        parts += [text[place : match.start], _PLACEHOLDERS[match.kind]]
        place = match.end
    return "".join([*parts, text[place:]])


def _private_keys(text: str) -> Iterator[Match]:
    endless: set[str] = set()  # kinds that end nowhere further on: asked once, so that the search stays linear
    place = 0
    while (begin := _PRIVATE_KEY.search(text, place)) is not None:
        place = begin.end()
        if begin.group(1) not in endless:
            end = text.find(f"-----END {begin.group(1)}", place)
            if end < 0:
                endless.add(begin.group(1))
                continue
            place = end + len(f"-----END {begin.group(1)}")
            yield Match("private_key", begin.start(), place)


def _keys(text: str) -> Iterator[Match]:
    for prefix, pattern in _TOKEN_PATTERNS.items():
        if prefix in text:
            for match in pattern.finditer(text):
                if _is_random(match.group()):
                    yield Match("key", match.start(), match.end())
    for match in _QUOTED.finditer(text):
        line = text.rfind("\n", max(0, match.start() - 120), match.start()) + 1
        before = text[max(line, match.start() - 120) : match.start()]
        if _ASSIGNED.search(before) and _is_random(match.group(1)):
            yield Match("key", match.start(1), match.end(1))


def _is_random(value: str) -> bool:
    """Whether a string has the entropy of a key: 3 bits a character, digits and letters, no dotted or dashed words."""
    counts = Counter(value)
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    digits = sum(character.isdigit() for character in value)
    return entropy >= 3.0 and 2 <= digits < len(value)


def _emails(text: str) -> Iterator[Match]:
    place = text.find("@")
    while place >= 0:
        if place and (text[place - 1].isalnum() or text[place - 1] in "._%+-"):
            local = _LOCAL.search(text, max(0, place - 64), place)
            match = _EMAIL.match(text, local.start(), place + 260) if local else None
            if match and match.group(1).lower() in _DOMAINS and not _NOT_PERSONAL.search(match.group()):
                yield Match("email", match.start(), match.end())
        place = text.find("@", place + 1)


def _addresses(text: str) -> Iterator[Match]:
    for match in _IPV4.finditer(text):
        try:
            address = ipaddress.IPv4Address(match.group())
        except ValueError:
            continue
        if address.is_global:
            yield Match("ip_address", match.start(), match.end())


def _in_strings_and_comments(text: str, matches: list[Match]) -> list[Match]:
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    spans = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.STRING, tokenize.COMMENT) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
                begin = starts[token.start[0] - 1] + token.start[1]
                spans.append((begin, starts[token.end[0] - 1] + token.end[1]))
    except (tokenize.TokenError, IndentationError, IndexError):
        return []
    return [match for match in matches if any(start <= match.start and match.end <= end for start, end in spans)]
