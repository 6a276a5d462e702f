"""From a base model to an assistant: conversations, function calls, preferences, tasks that tests can judge.

`chat` is the one form of conversations, `convert` brings other forms to it, `synth` makes new ones; `preferences` and
`verifiable` are what DPO and GRPO read; `judge` and `rewards` grade. The training itself is `mify.training.objectives`;
docs/fine-tuning.md goes the way from end to end.
"""
