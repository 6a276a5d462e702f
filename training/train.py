"""`torchrun --nproc-per-node N -m mify.training.train RECIPE [--key.sub=value …]`; `mify train` calls `main` too."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mify.errors import MifyError

from .config import load_recipe, recipe_names

USAGE = """usage: python -m mify.training.train RECIPE [--dry-run] [--profile] [--key.sub=value ...]

RECIPE is a TOML file or one of: {names}
"""


def main(arguments: Sequence[str]) -> int:
    """Runs a recipe. Returns the exit code: 0 done, 2 a user's mistake, 130 stopped with the state saved."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(names=", ".join(recipe_names())))
        return 0 if arguments else 2
    recipe, rest = arguments[0], list(arguments[1:])
    dry_run = "--dry-run" in rest
    overrides = [a for a in rest if a not in ("--dry-run", "--profile")]
    if "--profile" in rest:
        overrides.append("--logging.profile_steps=5")
    main_rank = os.environ.get("RANK", "0") == "0"
    try:
        config = load_recipe(recipe, overrides)
        if main_rank:
            from .plan import print_config, print_plan

            print_config(config)
            if dry_run:
                print_plan(config)
        if dry_run:
            return 0
        from .trainer import train

        result = train(config)
    except MifyError as error:
        print(f"mify: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if main_rank:
            print("mify: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if main_rank:
        print(f"{result.checkpoint} after {result.step} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
