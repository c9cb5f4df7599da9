"""DICOM files for tests, and those that ship with pydicom."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
PATIENT = "Doe^Jane"  # must not appear anywhere
IDENTIFIERS = {
    "PatientName": PATIENT,
    "PatientID": "MRN7731942",
    "PatientBirthDate": "19610417",
    "AccessionNumber": "ACC5550123",
    "InstitutionName": "St Elsewhere",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4242",
}


def dicom_dataset(pixels: np.ndarray, **elements: Any) -> FileDataset:
    """An image with a patient's header; uint8 or (u)int16, grey [H W] or colour [H W 3]."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"  # digital X-ray for presentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for name, value in (IDENTIFIERS | elements).items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    return dataset


def dicom_bytes(pixels: np.ndarray, **elements: Any) -> bytes:
    """The file of `dicom_dataset`."""
    return written(dicom_dataset(pixels, **elements))


def written(dataset: Dataset, **options: Any) -> bytes:
    """A dataset as a file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, **{"enforce_file_format": True} | options)
    return buffer.getvalue()


def big_endian(pixels: np.ndarray, **elements: Any) -> bytes:
    """The file of `dicom_dataset` with the larger byte first."""
    little = dicom_dataset(pixels, **elements)
    dataset = Dataset()  # a FileDataset knows the byte order that it began with, and does not change it
    dataset.update(little)
    dataset.file_meta = little.file_meta
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    dataset["PixelData"].VR = "OW"
    return written(dataset, implicit_vr=False, little_endian=False)


def lookup_table(entries: np.ndarray, first: int, bits: int) -> Dataset:
    """An item of a Modality or VOI LUT sequence."""
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return item


def gradient(dtype="uint16", height=24, width=32, lowest=0, highest=4095) -> np.ndarray:
    """Each value between two levels, in random places."""
    values = np.linspace(lowest, highest, height * width)
    return np.random.default_rng(0).permutation(np.rint(values)).astype(dtype).reshape(height, width)
