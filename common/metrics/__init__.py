"""How good texts and sets of codes are, by named conventions; `medreport score` for files."""
