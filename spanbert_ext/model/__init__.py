"""The model: packed BERT, its attention and heads, and any other encoder in its place."""
