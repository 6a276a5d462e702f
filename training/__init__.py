"""The bundled trainer: a recipe in, a run's folder out, `mify train` in Python.

    from mify.training.config import load_recipe
    from mify.training.trainer import train
    result = train(load_recipe("demo", ["--data.sources.code.path=mify-demo/tokens/code"]))

Read `trainer` (the loop: one screen), then `run_state` (what a step needs), `objective` (what is minimised;
`objectives/` has fine-tuning, preferences and rewards), `gradients` and `parallel` (micro-batches, ranks) and
`checkpoint`. Every key of a recipe stands in `config`, with what it means.
"""
