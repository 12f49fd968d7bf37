"""The benchmark logs, where they are there: the published counts, and the same bytes twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.prepare import prepare_files

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
COUNTS = {
    "amazon2014_beauty": (22_363, 12_101, 198_502),
    "amazon2014_toys": (19_412, 11_924, 167_597),
    "yelp_s3rec": (30_431, 20_033, 316_354),
    "amazon2018_industrial_late": (3_285, 3_541, 22_743),
    "yoochoose-100k": (21_210, 2_933, 83_845),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str, tmp_path: Path) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not beside the repository")
    for run in ("one", "two"):
        prepare_files(folder / "interactions.parquet", folder / "items.parquet", tmp_path / run)
    data = Dataset.load(tmp_path / "one")
    assert (data.num_users, data.num_items, data.num_interactions) == COUNTS[name]
    assert "asin" not in data.text_fields
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
