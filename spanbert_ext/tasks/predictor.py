"""A fine-tuned model with its task: from examples to predictions."""
