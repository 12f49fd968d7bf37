"""A small shop where what is chosen depends on the hour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from llmd4rec import Dataset

ITEMS, EVENTS = 48, 14
#: Midnight, UTC.
START = 1_700_006_400


def make_shop(folder: Path, seed: int = 0, users: int = 240) -> Dataset:
    """A data set in `folder`/data, and `folder`/prices.csv with a price for most items.

    In each quarter of a day one quarter of the items is chosen, any of them with the same probability. So the hour of a
    target says all that can be known.
    """
    rng = np.random.default_rng(seed)
    quarter = ITEMS // 4
    rows = []
    for user in range(users):
        item, time = int(rng.integers(ITEMS)), START + int(rng.integers(86_400))
        for _ in range(EVENTS):
            rows.append((f"u{user}", f"i{item}", time))
            time += int(rng.integers(3_600, 3 * 86_400))
            item = time // 21_600 % 4 * quarter + int(rng.integers(quarter))
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(ITEMS)],
            "title": [f"thing {item % quarter} for part {item // quarter} of the day" for item in range(ITEMS)],
            "brand": [None if item % 11 == 0 else f"brand {item % 5}" for item in range(ITEMS)],
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_frames(log, items)
    data.save(folder / "data")
    priced = [f"i{item},{1 + item % quarter}" for item in range(ITEMS) if item % 7]
    (folder / "prices.csv").write_text("item_id,price\n" + "\n".join(priced) + "\n", encoding="utf-8")
    return Dataset.load(folder / "data")
