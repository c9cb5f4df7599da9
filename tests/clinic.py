"""A data set that somebody else may have written with TFDS."""

import numpy as np
import tensorflow_datasets as tfds

from common.data.images import encode_png

FEATURES = {
    "report": tfds.features.Text(),
    "patient": tfds.features.Tensor(shape=(), dtype=np.str_),
    "image": tfds.features.Image(shape=(None, None, 1)),
    "finding": tfds.features.ClassLabel(names=["none", "edema"]),
    "age": np.int64,
    "dose": tfds.features.Tensor(shape=(2,), dtype=np.float32),
    "codes": tfds.features.Sequence(tfds.features.Text()),
    "box": {"left": np.float32},
}
VALUES = [name for name in FEATURES if name not in ("image", "box")]
REPORT = {"id": str | int, "report": str}


def png(number: int) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 256, (9, 7), dtype=np.uint8))


class Clinic(tfds.core.GeneratorBasedBuilder):
    """What somebody else may have written."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(FEATURES))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(20)), "validation": self._generate_examples(range(20, 23))}

    def _generate_examples(self, numbers):
        for number in numbers:
            yield (
                number,
                {
                    **{"report": f"Größe {number}, 胸片", "patient": f"p{number // 2}", "image": png(number)},
                    **{"finding": "edema" if number % 2 else "none", "age": number, "dose": np.float32([number, 0.5])},
                    **{"codes": ["a"] * (number % 3), "box": {"left": 0.5}},
                },
            )


def plain(value):
    """A value of TFDS as JSON would have it."""
    if isinstance(value, np.ndarray | list):
        return [plain(one) for one in value]
    return value.decode() if isinstance(value, bytes) else getattr(value, "item", lambda: value)()
