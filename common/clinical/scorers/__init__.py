"""Commands for `--external`, each a file that needs its scorer's own package and nothing else of this project."""
