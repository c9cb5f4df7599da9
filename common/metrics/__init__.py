"""How good texts and sets of codes are, by named conventions; `python -m common.metrics` for files."""
