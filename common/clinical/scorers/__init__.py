"""Commands for external scorers, each a file that needs only its scorer's package and nothing else of this project."""
