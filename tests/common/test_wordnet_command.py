"""`medreport wordnet` with a server of nltk's data on this machine: fetched once, or one clear line."""

import functools
import hashlib
import http.server
import io
import threading
import zipfile

import nltk.corpus
import nltk.data
import pytest
from nltk import pathsec
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader
from nltk.downloader import Downloader

from common.errors import UserError
from common.metrics import meteor
from common.metrics.text import evaluate_texts
from common.metrics.wordnet import main

HEADER = "  1 WordNet 3.0 Copyright\n"
SYNSET = f"{HEADER}{len(HEADER):08d} 08 n 02 cyst 0 sac 0 000 | a closed pouch\n"
WORDS = "".join(f"{word} n 1 0 1 0 {len(HEADER):08d}\n" for word in ("cyst", "sac"))


def archive() -> bytes:
    """A database that knows that a cyst is a sac, as nltk's server has it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for part in ("noun", "verb", "adj", "adv"):
            packed.writestr(f"wordnet/{part}.exc", "")
            packed.writestr(f"wordnet/index.{part}", HEADER + WORDS * (part == "noun"))
            packed.writestr(f"wordnet/data.{part}", SYNSET if part == "noun" else HEADER)
        senses = "".join(f"{word}%1:08:00:: {len(HEADER):08d} 1 0\n" for word in ("cyst", "sac"))
        packed.writestr("wordnet/index.sense", senses)
        packed.writestr("wordnet/lexnames", "".join(f"{index:02d}\tunused\t1\n" for index in range(45)))
    return content.getvalue()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *said) -> None:
        """Nothing, where the command's own messages are looked at."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Make nltk's server one on this machine, which its downloader would refuse; its data is in an empty folder."""
    monkeypatch.setattr(pathsec, "_ip_is_forbidden", lambda address: False)
    home, files = tmp_path / "nltk_data", tmp_path / "server"
    home.mkdir()
    files.mkdir()
    monkeypatch.delenv(meteor.WORDNET_VARIABLE, raising=False)
    monkeypatch.setattr(meteor, "DEBIAN_WORDNET", tmp_path)
    monkeypatch.setattr(nltk.data, "path", [str(home)])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    packed = archive()
    whole = sum(file.file_size for file in zipfile.ZipFile(io.BytesIO(packed)).infolist())
    (files / "wordnet.zip").write_bytes(packed)
    handler = functools.partial(Quiet, directory=str(files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{serving.server_port}"
        (files / "index.xml").write_text(
            f'<nltk_data><packages><package id="wordnet" name="WordNet" subdir="corpora" unzip="1" '
            f'url="{address}/wordnet.zip" size="{len(packed)}" unzipped_size="{whole}" '
            f'sha256_checksum="{hashlib.sha256(packed).hexdigest()}"/></packages><collections/></nltk_data>'
        )
        monkeypatch.setattr(Downloader, "DEFAULT_URL", f"{address}/index.xml")
        yield
        serving.shutdown()


def test_wordnet_is_fetched_once_and_meteor_uses_it(server, monkeypatch, capsys):
    assert meteor.absence()
    main([])
    assert capsys.readouterr() == ("WordNet fetched: nltk/METEOR can be computed\n", "")
    found = evaluate_texts(["cyst seen"], ["sac seen"], convention="nltk", intervals=False)
    assert found["nltk/METEOR"]["value"] == pytest.approx(0.9375)
    monkeypatch.setattr(Downloader, "DEFAULT_URL", "http://127.0.0.1:9/nobody")
    main([])
    assert "WordNet is installed" in capsys.readouterr().out


def test_what_cannot_be_fetched_is_one_line(server, tmp_path, monkeypatch, capsys):
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as raised:
            main([])
        assert "\n" not in str(raised.value)
        assert capsys.readouterr() == ("", "")
        assert meteor.absence()

    (tmp_path / "server" / "wordnet.zip").write_bytes(b"something else")
    refused("cannot be fetched from .*: .*wordnet-base")
    (tmp_path / "server" / "index.xml").write_text("no index")
    refused("cannot be fetched")
    monkeypatch.setattr(Downloader, "DEFAULT_URL", "http://127.0.0.1:9/index.xml")
    refused(r"cannot be fetched from http://127.0.0.1:9/index.xml \(.*\); without a network")
