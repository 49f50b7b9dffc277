"""`curtail data` and `curtail tokenizer`: text to packed training data."""
