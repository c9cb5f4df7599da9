"""`medreport wordnet`: fetch WordNet 3.0, which nltk's METEOR needs, into the folder of nltk's data."""

import io

from common.errors import Parser, UserError
from common.metrics.meteor import WORDNET_VARIABLE, absence


def main(argv: list[str]) -> None:
    """Fetch it unless it is there. Raises UserError where it cannot be had."""
    Parser("medreport wordnet", description=__doc__.split(":", 1)[1].strip()).parse_args(argv)
    there = not absence()
    if not there:
        fetch()
    print(f"WordNet {'is installed' if there else 'fetched'}: nltk/METEOR can be computed")


def fetch() -> None:
    """Fetch WordNet by nltk's downloader, which checks its digest and keeps nothing in part. Raises UserError."""
    from nltk.downloader import Downloader

    downloader = Downloader()
    try:
        # It also prints what it raises.
        downloader.download("wordnet", quiet=True, raise_on_error=True, print_error_to=io.StringIO())
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: an index that is not XML
        raise UserError(
            f"WordNet cannot be fetched from {downloader.url} ({error}); without a network, install Debian's "
            f"wordnet-base, or name a directory with the WordNet 3.0 database files in {WORDNET_VARIABLE}"
        ) from error
    if reason := absence():
        raise UserError(f"WordNet was fetched into {downloader.download_dir} and cannot be read: {reason}")
