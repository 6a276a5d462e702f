"""detect-secrets on the lines with a hint: keys of services are found where they stand, look-alikes are not."""

from __future__ import annotations

import random
import string

import pytest

from mify.curation.known_secrets import HINTS, find_secrets, looks_harmless
from mify.curation.personal_data import PersonalDataRules, apply_rules

pytest.importorskip("detect_secrets")
RANDOM = random.Random(3)


def characters(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(RANDOM.choices(alphabet, k=count))


# Made up here at random, in the form that each service gives to its keys.
SECRETS = {
    "artifactory": ("token: {}", "AKC" + characters(20)),
    "aws key id": ("id = '{}'", "AKIA" + characters(16, string.ascii_uppercase + string.digits)),
    "aws secret": ("aws_secret_access_key = '{}'", characters(40)),
    "azure": ("x;{};y", "AccountKey=" + characters(86) + "=="),
    "basic auth": ("url = 'https://jane:{}@db.internal.net/x'", "s3cr3t9Qz"),
    "github": ("token {}", "ghu_" + characters(36)),
    "gitlab": ("token {}", "glpat-" + characters(20)),
    "mailchimp": ("key: {}", characters(32, string.ascii_lowercase + string.digits) + "-us7"),
    "openai": ("{}", "sk-" + characters(20) + "T3BlbkFJ" + characters(20)),
    "sendgrid": ("SENDGRID={}", "SG." + characters(22) + "." + characters(43)),
    "slack": ("{}", "xoxb-" + characters(12, string.digits) + "-" + characters(24)),
    "square": ("{}", "sq0csp-" + characters(43)),
    "stripe": ("{}", "sk_live_" + characters(24)),
    "twilio": ("# twilio\nsid = '{}'", "AC" + characters(32, string.ascii_lowercase + string.digits)),
    "discord": ("# discord bot\n{}", "M" + characters(23) + "." + characters(6) + "." + characters(27)),
}


@pytest.mark.parametrize("service", sorted(SECRETS))
def test_keys_are_found_where_they_stand(service: str) -> None:
    form, secret = SECRETS[service]
    text = "import os\n" + form.format(secret) + "\nprint(1)\n"
    covered = [text[start:end] for start, end in find_secrets(text)]
    assert any(secret in found or (found in secret and len(found) >= 0.8 * len(secret)) for found in covered), covered
    redacted, counts, dropped = apply_rules(text, "text", PersonalDataRules())
    assert secret not in redacted
    assert counts["key"] == 1
    assert dropped is None
    assert redacted.startswith("import os\n")
    assert redacted.endswith("\nprint(1)\n")
    assert apply_rules(text, "text", PersonalDataRules(key="drop"))[2] is not None
    assert apply_rules(text, "text", PersonalDataRules(key="keep", email="keep"))[0] == text


@pytest.mark.parametrize(
    "line",
    [
        "url = 'https://user:password@example.com'",
        "url = 'https://user:{password}@example.com'",
        "url = 'https://$USER:$PASSWORD@example.com'",
        "see https://example.com:8080/@jane",
        "the -us1 and SG. and eyJ and xox hints alone",
        "id = '123e4567-e89b-12d3-a456-426614174000'",
        "glpat-",
    ],
)
def test_what_only_looks_like_one_stays(line: str) -> None:
    assert list(find_secrets(line)) == []


def test_values_without_a_secret() -> None:
    assert looks_harmless("changeme")
    assert looks_harmless("abcdefghijklmnop")
    assert looks_harmless("${TOKEN}")
    assert looks_harmless("********")
    assert not looks_harmless(characters(30))


def test_text_without_hints_is_not_looked_at_and_long_lines_are_left_out() -> None:
    assert not any(hint in "def f(x):\n    return x + 1\n" for hint in HINTS)
    assert list(find_secrets("x" * 5000 + " glpat-" + characters(20))) == []
    assert list(find_secrets("")) == []


def test_switched_off_it_is_not_asked() -> None:
    text = "token " + SECRETS["gitlab"][1].replace("glpat", "glrt") + "\n"
    assert apply_rules(text, "text", PersonalDataRules())[0] == "token <KEY>\n"
    assert apply_rules(text, "text", PersonalDataRules(detect_secrets="off"))[0] == text
