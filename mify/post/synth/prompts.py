"""The texts that models are asked: `prompts.toml`, and what a recipe puts in its place."""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.typed_tree import unknown_key

Prompts = dict[str, Any]
_USES_FORM = re.compile(r"\{\{-?\s*form\b")


def load_prompts(path: Path | None = None) -> Prompts:
    """The package's prompts, with those of a TOML file in their place.

    Raises:
        MifyError: the file cannot be read, or replaces what is not there.
    """
    prompts = _read(Path(__file__).with_name("prompts.toml"))
    if path is None:
        return prompts
    own = _read(path)
    for key, value in own.items():
        if key not in prompts:
            raise unknown_key(key, key, prompts, "")
        if type(value) is not type(prompts[key]):
            raise MifyError(f"{path}: {key} is no {type(prompts[key]).__name__}", "see prompts.toml of the package")
    return {**prompts, **own}


def filled(prompts: Prompts, name: str, **values: Any) -> str:
    """A prompt with its values; `form`, where it is used, is filled with the same.

    Raises:
        MifyError: the template names what it is not given, or is no template.
    """
    from jinja2 import TemplateError

    try:
        if _USES_FORM.search(prompts[name]):
            values["form"] = _template(prompts["form"]).render(**{"tests": False, "min_tests": 0, **values}).strip()
        return _template(prompts[name]).render(**values).strip()
    except TemplateError as error:
        raise MifyError(f"the prompt {name!r} cannot be filled: {error}", "mend it in the recipe's prompts") from None


@lru_cache(maxsize=64)
def _template(text: str) -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)


def _read(path: Path) -> Prompts:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MifyError(f"{path} cannot be read as prompts ({error})", "see prompts.toml of the package") from None
