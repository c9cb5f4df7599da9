"""Metrics of texts and sets of codes, by named conventions; `medreport score` for files."""
