"""What a model reads and writes: the tokenizer and its chat template."""
