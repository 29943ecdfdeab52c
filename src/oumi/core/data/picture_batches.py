# SPDX-License-Identifier: Apache-2.0
"""Batches of examples with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oumi.core.batch import Batch, collate
from oumi.core.data.cache import cache_folder
from oumi.core.data.vision import BadPicture, Pictures, load_picture
from oumi.core.errors import DataError
from oumi.core.types.example import Example


def collate_with_pictures(examples: Sequence[Example], pictures: Pictures) -> Batch:
    """Returns examples end to end, with the features of their pictures.

    Raises:
        DataError: A picture has changed since its row was tokenised, or is gone.
    """
    batch = collate(examples)
    counts = [len(one) for example in examples for one in (example.pictures or ((),) * len(example.starts))]
    if not any(counts):
        return batch
    images = []
    for example in examples:
        try:
            images += [load_picture(item) for of_document in example.pictures for item in of_document]
        except BadPicture as error:
            raise DataError(f"{example.source}: {error}") from None
    wanted = sum(int((pictures.expansion(one) == pictures.token_id).sum()) for one in images)
    if wanted != int((batch.tokens == pictures.token_id).sum()):
        names = ", ".join(str(one.source) for one in examples)
        raise DataError(
            f"a picture of these rows has another size than when it was tokenised: {names}\n"
            f"Bring it back as it was, or delete {cache_folder()}, where the tokens are kept"
        )
    return replace(batch, features=pictures.features(images), num_pictures=tuple(counts))
