"""The Indiana University chest X-ray collection (Open-i), read from its XML archive as published.

A study has free-text sections and human-coded standard terms (`MeSH/major`, such as
`Opacity/lung/base/left/mild`). Standardization goes from FINDINGS and IMPRESSION to the terms. Source:
Demner-Fushman et al., JAMIA 23(2), 2016.
"""

import gzip
import hashlib
import io
import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.cleaning import clean_report
from common.data.records import Quarantine, Record, ReportPair, check_splits
from common.errors import UserError
from common.io.inputs import open_input, read_bytes, reason
from common.io.terminal import printable
from common.io.text import decode_text, read_text

EXPECTED = "the archive NLMCXR_reports.tgz or a directory of its XML files"
WRONG_ARCHIVE = "expected the archive NLMCXR_reports.tgz, which holds 3,955 reports such as ecgen-radiology/1.xml"
MACOS = "._"  # begins the name of what macOS adds to an archive for each file
# Bounds on what an archive unpacks to: the published one has 3,955 reports of a few kilobytes.
LONGEST_REPORT = 4 << 20
MOST_MEMBERS = 100_000
MOST_UNPACKED = 512 << 20


@dataclass(frozen=True)
class OpeniImage:
    """One radiograph of a study: its id in the image archive (`CXR1000_IM-0003-1001`) and caption."""

    id: str
    caption: str


@dataclass(frozen=True)
class OpeniStudy:
    """One report. An absent section is an empty string; `codes` are distinct and sorted."""

    id: str
    comparison: str
    indication: str
    findings: str
    impression: str
    codes: tuple[str, ...]
    images: tuple[OpeniImage, ...]


def read_openi(path: str | Path) -> list[OpeniStudy]:
    """All studies of the archive `NLMCXR_reports.tgz`, or of a directory of its XML files, by number.

    The archive is streamed, nothing is unpacked to disk. Raises UserError naming archive and member where the
    archive is missing, damaged or empty, a member is not UTF-8 or no Open-i report, or an id occurs twice.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: does not exist; expected {EXPECTED}")
    studies: dict[str, OpeniStudy] = {}
    origins: dict[str, str] = {}
    for origin, data in _directory_files(path) if path.is_dir() else _archive_members(path):
        study = _parse_study(data, origin)
        if study.id in studies:
            raise UserError(
                f"{origin}: id {printable(study.id)} is already used by {origins[study.id]}; keep one of them"
            )
        studies[study.id] = study
        origins[study.id] = origin
    if not studies:
        raise UserError(f"{path}: {_without_reports(path)}")
    return sorted(studies.values(), key=lambda study: (len(study.id), study.id))


def openi_pairs(studies: Iterable[OpeniStudy], quarantine: Quarantine) -> list[ReportPair]:
    """Free text -> codes, one per line in sorted order; studies that lack either side are quarantined.

    The free text is `FINDINGS: ...` and `IMPRESSION: ...`, a line each, less a section that the study lacks.
    """
    pairs = []
    for study in studies:
        sections = {"FINDINGS": study.findings, "IMPRESSION": study.impression}
        source = "\n".join(f"{name}: {text}" for name, text in sections.items() if text)
        if not source:
            quarantine.add(study.id, "no FINDINGS and no IMPRESSION")
        elif not study.codes:
            quarantine.add(study.id, "no MeSH/major code")
        else:
            pairs.append(ReportPair(study.id, source, "\n".join(study.codes)))
    if not pairs:
        raise UserError("no study has both report text and MeSH/major codes; expected reports of the Open-i collection")
    return pairs


def read_test_ids(path: str | Path) -> frozenset[str]:
    """Ids of the test studies, one per line (`openi-testset.txt`). Raises UserError for a bad or empty file."""
    # Cleaned: an invisible character in an id would put its study into training.
    ids = frozenset(clean_report(read_text(path, "the test ids, openi-testset.txt")).split())
    if not ids:
        raise UserError(f"{path} contains no id; expected ids such as CXR10, one per line")
    return ids


def count_unknown_ids(test_ids: Collection[str], known: Collection[str], quarantine: Quarantine) -> None:
    """Count in the quarantine the test ids that no report has, so that a test set which is smaller than its file shows.

    `known` holds the ids of all reports, those that cannot be used among them.
    """
    for id in sorted(frozenset(test_ids) - frozenset(known)):
        quarantine.add(id, "test id that no report has")


def openi_splits(
    records: Sequence[Record], test_ids: Collection[str], validation: int = 200, seed: int = 0
) -> dict[str, list[Record]]:
    """`train`, `validation` and `test` records in the given order; `count_unknown_ids` counts the test ids
    without a record.

    Validation studies are those whose seeded hash is smallest: the choice depends on neither the order of the
    records nor a random generator's version, and one record more or less moves at most one other. Raises
    UserError where an id occurs twice, no test id matches, or nothing remains to train on.
    """
    test_ids = frozenset(test_ids)
    if not any(record.id in test_ids for record in records):
        raise UserError(
            f"none of the {len(test_ids)} test ids is among the {len(records)} usable records; expected ids such as "
            "CXR10"
        )
    rest = sorted(
        {record.id for record in records} - test_ids,
        key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest(),
    )
    if not 0 < validation < len(rest):
        raise UserError(
            f"cannot take {validation} validation records from the {len(rest)} outside the test set; "
            "expected at least 1, and fewer than that"
        )
    validation_ids = frozenset(rest[:validation])
    held_out = test_ids | validation_ids
    splits = {
        "train": [record for record in records if record.id not in held_out],
        "validation": [record for record in records if record.id in validation_ids],
        "test": [record for record in records if record.id in test_ids],
    }
    check_splits(splits)
    return splits


def _without_reports(path: Path) -> str:
    """What to do where an archive or directory holds no report."""
    if path.is_dir():
        archives = sorted(file.name for file in path.glob("*.tgz"))
        remedy = f"name the archive {path / archives[0]}" if archives else "name the folder that has 1.xml in it"
        return f"no .xml report there or in its folders; {remedy}"
    return f"no .xml report in it; {WRONG_ARCHIVE}"


def _directory_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The reports of a folder or, where it has none itself, of the folders in it, as the unpacked archive has them."""
    for file in sorted(path.glob("*.xml")) or sorted(path.glob("*/*.xml")):
        if not file.name.startswith(MACOS):
            yield str(file), read_bytes(file, EXPECTED, LONGEST_REPORT)


def _archive_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with open_input(path) as file, gzip.GzipFile(fileobj=file) as unzipped:
            stream = _Bounded(unzipped, path)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for number, member in enumerate(archive, start=1):
                    yield from _report(archive, member, f"{path}: {printable(member.name)}")
                    if number >= MOST_MEMBERS:
                        raise UserError(f"{path}: has more than {MOST_MEMBERS:,} members; {WRONG_ARCHIVE}")
            # tarfile takes a damaged header for the end of the archive. Reading on to the end of the gzip
            # stream checks its length and checksum, so a damaged or cut file never passes for a small one.
            while stream.read(1 << 20):
                pass
    # Damaged and crafted headers also raise ValueError, and RecursionError where header follows header.
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a complete gzipped tar archive ({printable(reason(error))}); "
            "expected NLMCXR_reports.tgz, fetch it again if it was cut short"
        ) from error


def _report(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> Iterator[tuple[str, bytes]]:
    """A member and its content, where it is a report. Raises UserError for one that is a link or too large."""
    name = member.name.rpartition("/")[2]
    if not name.endswith(".xml") or name.startswith(MACOS) or member.isdir():
        return
    if not member.isreg():
        raise UserError(f"{where}: is a link or a device, not a file; pack the reports themselves (tar --dereference)")
    if member.size > LONGEST_REPORT:
        raise UserError(f"{where}: has {member.size:,} bytes; expected a report of at most {LONGEST_REPORT:,}")
    content = archive.extractfile(member)
    if content is not None:
        yield where, content.read()


class _Bounded(io.BufferedIOBase):
    """A stream that refuses to give more than `MOST_UNPACKED` bytes: a small file can unpack to any size."""

    def __init__(self, stream: gzip.GzipFile, path: Path):
        self._stream, self._path, self._left = stream, path, MOST_UNPACKED

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes, as of any stream. Raises UserError."""
        most = self._left + 1
        content = self._stream.read(most if size is None or size < 0 else min(size, most))
        self._left -= len(content)
        if self._left < 0:
            raise UserError(f"{self._path}: unpacks to more than {MOST_UNPACKED:,} bytes; {WRONG_ARCHIVE}")
        return content


def _parse_study(data: bytes, origin: str) -> OpeniStudy:
    text = decode_text(data, origin)
    # Reports declare no document type, and without one there are no entities that could expand without end.
    if "<!DOCTYPE" in text:
        raise UserError(f"{origin}: declares a document type; expected a plain Open-i report, remove the declaration")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(
            f"{origin}: not well-formed XML ({error}); restore the file from the original archive"
        ) from error
    identity = root.find("uId")
    study_id = "" if identity is None else identity.get("id", "").strip()
    if not study_id:
        raise UserError(f'{origin}: no <uId id="CXR..."/> under the root; expected an Open-i report')
    codes = {" ".join((element.text or "").split()) for element in root.iterfind("MeSH/major")}
    return OpeniStudy(
        id=study_id,
        comparison=_section(root, "COMPARISON"),
        indication=_section(root, "INDICATION"),
        findings=_section(root, "FINDINGS"),
        impression=_section(root, "IMPRESSION"),
        codes=tuple(sorted(codes - {""})),
        images=tuple(
            OpeniImage(image.get("id", ""), _text(image.find("caption"))) for image in root.iterfind("parentImage")
        ),
    )


def _section(root: ElementTree.Element, label: str) -> str:
    texts = (_text(element) for element in root.iter("AbstractText") if element.get("Label") == label)
    return "\n".join(text for text in texts if text)


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else clean_report("".join(element.itertext()))
