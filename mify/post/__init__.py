"""From a base model to an assistant: conversations, function calls, data for fine-tuning."""
