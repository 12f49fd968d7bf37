"""Items that are added, changed, removed and saved."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmd4rec import Filters, NewItem, Recommender
from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.factors import SPACE
from llmd4rec.inference.search import TitleSearch
from llmd4rec.inference.snapshot import MOST_REMOVED

from .by_hand import ids, item_of, undistilled_of
from .store import Store


def test_a_new_item_takes_the_place_its_text_gives(recommender: Recommender, store: Store) -> None:
    twin = store.data.catalogue.row(6, named=True)
    fields = {"brand": twin["brand"], "category": "Books", "price": 99}
    report = recommender.add_items([NewItem("new", twin["title"], fields)])
    assert (report.added, report.replaced) == (("new",), ())
    item = item_of(recommender, "new")
    assert (item.title, item.count, dict(item.fields)) == (twin["title"], 0, {**fields, "price": 99.0})
    text_map = np.load(store.export / "text_map.npy")
    from llmd4rec.models.llm.item_text import encode_texts

    vector = encode_texts(store.data.texts()[6:7], store.run.settings.texts.encoder)
    expected = np.append(vector[0], 1).astype(np.float32) @ text_map
    # the exported encoder is in 8-bit numbers
    found = recommender._snapshot.vectors_ID[-1]
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max() + 1e-3)
    given = Recommender.load(store.export)
    given.add_items([NewItem("new", vector=vector[0])])
    np.testing.assert_allclose(given._snapshot.vectors_ID[-1], expected, atol=1e-5)
    assert ids(recommender.recommend(["i3"], filters=Filters(at_least={"price": 50}))) == ["new"]
    assert recommender.recommend(["new"], 3).unknown == ()
    assert recommender.info.items == 21
    assert undistilled_of(recommender).info.items == 21
    assert undistilled_of(recommender).item("new") is not None
    assert not np.allclose(undistilled_of(recommender)._snapshot.vectors_ID[-1], recommender._snapshot.vectors_ID[-1])


def test_a_trained_item_keeps_its_row_and_needs_no_text(store: Store) -> None:
    recommender, plain = Recommender.load(store.export), Recommender.load(store.export)
    recommender._embedder = None
    recommender.remove_items(["i3"])
    assert recommender.item("i3") is None
    assert "i3" not in ids(recommender.recommend(["i2"], 20))
    assert recommender.recommend(["i2", "i3"], 1).unknown == ()  # it was seen, whether or not it is sold
    report = recommender.add_items([NewItem("i3", None, {"price": "$1,001.5"}), NewItem("i4", "renamed")])
    assert (report.added, report.replaced) == (("i3",), ("i4",))
    assert item_of(recommender, "i3").fields == {**item_of(plain, "i3").fields, "price": 1001.5}
    assert item_of(recommender, "i4").title == "renamed"
    assert item_of(recommender, "i3").count == item_of(plain, "i3").count
    ours, theirs = (
        {item.item_id: item.score for item in each.recommend(["i2", "i3"], 20).items} for each in (recommender, plain)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)
    with pytest.raises(RunError, match=r"'new' is new, and .* cannot embed new items"):
        recommender.add_items([NewItem("new", "red")])


def test_of_a_known_item_only_what_is_given_changes(recommender: Recommender, store: Store) -> None:
    """An item that was added too: it is placed again only by what is given of what it is placed by."""
    recommender.add_items([NewItem("n", "red film", {"brand": "acme", "category": "Books"})])
    row = recommender._snapshot.vectors_ID[-1].copy()
    for item_id, title in (("i3", "red film 3"), ("n", "red film")):
        before = item_of(recommender, item_id)
        recommender.add_items([NewItem(item_id, fields={"price": 7.5, "category": None})])
        after = item_of(recommender, item_id)
        assert after.title == title
        assert after.fields == {**before.fields, "price": 7.5, "category": None}
    np.testing.assert_array_equal(recommender._snapshot.vectors_ID[-1], row)
    recommender.add_items([NewItem("n", fields={"brand": "blue"})])
    assert not np.array_equal(recommender._snapshot.vectors_ID[-1], row)  # by its title and the new brand
    fresh = Recommender.load(store.export)
    fresh.add_items([NewItem("n", "red film", {"brand": "blue"})])
    np.testing.assert_allclose(recommender._snapshot.vectors_ID[-1], fresh._snapshot.vectors_ID[-1], atol=1e-6)
    recommender.add_items([NewItem("i3", "")])
    assert item_of(recommender, "i3").title == "i3"


def test_new_prices_do_not_make_the_recommender_larger(store: Store) -> None:
    """Whatever changes again and again is written over: trained items, and those that were added."""
    recommender = Recommender.load(store.export)
    vectors = np.random.default_rng(0).normal(size=(5, 1, len(np.load(store.export / "text_map.npy")) - 1))
    trained = ids(recommender.recommend(["i3"], 20, filter_seen=False))
    for turn in range(5):
        changed = [NewItem(item_id, f"title {turn}", {"price": turn}) for item_id in trained]
        report = recommender.add_items([*changed, NewItem("n", f"new {turn}", vector=vectors[turn][0])])
        assert set(report.added) == ({"i5"} if turn else {"n"})  # it had been removed, which is no replacement
        assert set(report.replaced) == {*trained, "n"} - set(report.added)
        recommender.remove_items(["i5"])
    assert (
        len(recommender.catalogue)
        == len(recommender._snapshot.vectors_ID)
        == undistilled_of(recommender)._snapshot.vectors_ID.shape[0]
        == 21
    )
    assert ids(recommender.recommend(["i3"], 20, filter_seen=False, filters=Filters(deny=["n"]))) == [
        item for item in trained if item != "i5"
    ]
    assert item_of(recommender, "n").title == "new 4"
    assert item_of(recommender, "i4").fields["price"] == 4
    fresh = Recommender.load(store.export)
    fresh.add_items([NewItem("n", "new 4", vector=vectors[4][0])])
    np.testing.assert_array_equal(recommender._snapshot.vectors_ID, fresh._snapshot.vectors_ID)


def test_rows_that_an_index_knows_are_not_written_over() -> None:
    """An export may hold items whose rows were made from texts; the index was built over those rows."""
    frame = pl.DataFrame({"item_id": ["a", "b"]})
    every, trained = np.ones(2, dtype=np.int64), np.array([True, False])
    catalogue = Catalogue.of(frame, every, {}, trained)
    items = [NewItem("b", "x"), NewItem("a", "y"), NewItem("c", "z")]
    rows = catalogue.rows_for(items, 2)
    assert rows == [2, 0, 3]
    larger = catalogue.with_items(items, rows)
    assert (larger.ids, larger.titles) == (["a", "b", "b", "c"], ["y", None, "x", "z"])
    assert larger.present.tolist() == [True, False, True, True]
    assert larger.trained.tolist() == [True, False, False, False]
    assert dict(larger.index) == {"a": 0, "b": 2, "c": 3}
    assert larger.rows_for(items, 2) == [2, 0, 3]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([NewItem("a", "red"), NewItem(" ", "red")], r"items\[1\] has no identifier"),
        ([NewItem("a", "red"), NewItem("a", "blue")], "'a' is given twice"),
        ([NewItem("a", "red", {"colour": "x"})], "'a': the catalogue has no field 'colour'"),
        ([NewItem("a", "red", {"price": "dear"})], "'a': field 'price' contains numbers, but 'dear' is not a number"),
        ([NewItem("a", "red", {"price": "9,99"})], "but '9,99' is not a number"),  # 999 of what would be guessed
        ([NewItem("a", "red", {"price": float("inf")})], "field 'price' cannot hold inf"),
        ([NewItem("b", "red"), NewItem("a", None, {"price": 3})], "'a' is new and has no text"),
        ([NewItem("a", vector=[1.0, 2.0])], r"'a': its vector has shape \(2,\)"),
        ([NewItem("a", vector=[float("inf")] * 16)], "not finite"),
        ([NewItem("a", vector=[0.0] * 16)], "'a': its vector is zero"),
    ],
)
def test_items_that_cannot_be_added(recommender: Recommender, items: list[NewItem], message: str) -> None:
    with pytest.raises(DataError, match=message):
        recommender.add_items(items)
    assert recommender.info.items == 20


@pytest.mark.parametrize("size", [3e38, 1e300, 7.0, 1e-300])
def test_the_length_of_a_vector_does_not_matter(store: Store, size: float) -> None:
    """Texts' vectors have length 1 in training; a longer one made a row that was no number, for all to see."""
    direction = np.random.default_rng(1).normal(size=16)
    unit, scaled = Recommender.load(store.export), Recommender.load(store.export)
    unit.add_items([NewItem("n", vector=direction / np.linalg.norm(direction))])
    scaled.add_items([NewItem("n", vector=direction / np.abs(direction).max() * size)])
    np.testing.assert_allclose(scaled._snapshot.vectors_ID, unit._snapshot.vectors_ID, atol=1e-5)
    assert len(scaled.recommend(["i3"], 50, filter_seen=False).items) == 21


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_row_that_is_no_number_is_refused_in_both_models(recommender: Recommender) -> None:
    undistilled = undistilled_of(recommender)
    broken = undistilled._embedder
    assert broken is not None
    undistilled._embedder = replace(broken, maps={SPACE: lambda texts: np.inf * broken.maps[SPACE](texts)})
    with pytest.raises(DataError, match="'n': the embedding made from its text vector is not finite"):
        recommender.add_items([NewItem("n", vector=[1.0] * 16)])
    assert recommender.info.items == undistilled.info.items == 20


def test_removing(recommender: Recommender) -> None:
    report = recommender.remove_items(["i1", "who?", "i1", "i2"])
    assert (report.removed, report.unknown) == (("i1", "i2"), ("who?",))
    assert recommender.info.items == 18
    assert {"i1", "i2"}.isdisjoint(ids(recommender.recommend([], 20)))
    assert {"i1", "i2"}.isdisjoint(ids(recommender.similar("i3", 20)))
    assert {"i1", "i2"}.isdisjoint(ids(recommender.recommend(["i3"], 20, filters=Filters(allow=["i1", "i4"]))))
    assert undistilled_of(recommender).item("i1") is None
    assert recommender.remove_items(["i1"]).unknown == ("i1",)


def test_changes_do_not_disturb_requests_in_flight(store: Store) -> None:
    """Every answer is that of the catalogue before or after a change, never a mixture."""
    recommender = Recommender.load(store.export)
    vector = np.ones(16) / 4
    allowed = [{f"i{row}" for row in range(20)} | extra for extra in (set(), {"n"})]
    wrong: list[object] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                answer = recommender.recommend(["n", "i3"], 50, filter_seen=False, explain=True)
                found = set(ids(answer))
                if found not in allowed or ("n" in answer.unknown and "n" in found):
                    wrong.append(found)
            except Exception as error:  # what escapes is what is looked for
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(25):
        recommender.add_items([NewItem("n", "red", vector=vector)])
        recommender.remove_items(["n"])
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_saved_is_what_was_served(recommender: Recommender, tmp_path: Path) -> None:
    recommender.add_items([NewItem("n", "red film", {"price": 3.5}), NewItem("i4", "renamed", {"brand": "new brand"})])
    recommender.remove_items(["i9"])
    recommender.save(tmp_path / "saved")
    again = Recommender.load(tmp_path / "saved")
    assert again.info.items == recommender.info.items == 20
    for asked, back in ((recommender, again), (undistilled_of(recommender), undistilled_of(again))):
        for history in (["i3", "n"], ["i4"], []):
            ours, theirs = asked.recommend(history, 30, explain=True), back.recommend(history, 30, explain=True)
            assert [(i.item_id, i.title, i.fields) for i in ours.items] == [
                (i.item_id, i.title, i.fields) for i in theirs.items
            ]
            np.testing.assert_allclose([i.score for i in ours.items], [i.score for i in theirs.items], atol=1e-6)
    assert again.item("i9") is None
    assert again.recommend(["i9"]).unknown == ("i9",)
    assert again.catalogue.is_trained("i4")
    assert not again.catalogue.is_trained("n")
    assert "catalogue of 20" in (tmp_path / "saved" / "README.md").read_text()
    assert again.info.fingerprint != recommender.info.fingerprint
    with pytest.raises(DataError, match="already exists"):
        again.save(tmp_path / "saved")
    again.save(tmp_path / "saved", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(RunError, match="is not an export"):
        again.save(tmp_path / "mine", overwrite=True)


def test_an_export_in_the_local_cache_of_the_hub(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As huggingface_hub lays it out; nothing is asked of the network."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--owner--shop"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(store.export, home / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LLMD4REC_OFFLINE", "1")
    recommender = Recommender.load("owner/shop", index="exact")
    assert recommender.recommend(["i3"], 5).items == Recommender.load(store.export).recommend(["i3"], 5).items
    assert Recommender.load("owner/shop", revision=commit).info.items == 20
    with pytest.raises(RunError, match=r"no folder owner/other, and the hub did not give it: .*network is forbidden"):
        Recommender.load("owner/other")
    with pytest.raises(RunError, match="network is forbidden"):
        recommender.push_to_hub("owner/shop")
    with pytest.raises(RunError, match="does not exist"):
        Recommender.load(Path("nowhere"))


def test_rows_of_removed_items_are_freed(store: Store) -> None:
    """However many items come and go: a thousand of those that went are remembered in histories, and no more."""
    recommender = Recommender.load(store.export)
    vector = np.ones(16)
    for turn in range(30):
        names = [f"{turn}/{number}" for number in range(100)]
        recommender.add_items([NewItem(name, f"film of {name}", vector=vector) for name in names])
        recommender.remove_items(names)
        for model in (recommender, undistilled_of(recommender)):
            catalogue = model.catalogue
            assert len(catalogue) <= 20 + 100 + MOST_REMOVED
            assert len(catalogue) == len(catalogue.index) == model._snapshot.scorer.num_rows
            assert len(catalogue) == len(catalogue.fields["brand"].values) == len(model._snapshot.vectors_ID)
    assert recommender.recommend(["29/5", "0/5"], 3).unknown == ("0/5",)
    fresh = Recommender.load(store.export)
    for history in (["i3"], ["i3", "i7", "i3"]):
        ours, theirs = (each.recommend(history, 20, explain=True) for each in (recommender, fresh))
        assert ids(ours) == ids(theirs)
        assert [item.score for item in ours.items] == pytest.approx([item.score for item in theirs.items], abs=1e-5)
    recommender.add_items([NewItem("new", "red film", vector=vector)])
    assert ids(recommender.similar("new", 30)).count("new") == 0
    assert recommender.recommend(["new"], 20).num_candidates == 20


def test_the_first_search_and_filter_after_a_change_need_not_collect_all_titles_again(store: Store) -> None:
    """What was collected is changed with the catalogue: as it is published it is what collecting afresh would give."""
    recommender = Recommender.load(store.export)
    recommender.search("red", 3)
    recommender.recommend(["i3"], filters=Filters(any_of={"brand": "acme"}, at_least={"price": 3}))
    rng = np.random.default_rng(0)
    words = ["red", "blue", "rédd", "film", "two words", "", "9"]
    for turn in range(40):
        some = [f"{'in'[int(rng.integers(2))]}{rng.integers(25)}" for _ in range(3)]
        if turn % 5 == 4:
            recommender.remove_items(some)
        else:
            recommender.add_items([
                NewItem(
                    name,
                    str(rng.choice(words)),
                    {"brand": [None, "acme", "öl & co", "new brand"][int(rng.integers(4))], "price": float(turn)},
                    text="red",
                )
                for name in dict.fromkeys(some)
            ])  # fmt: skip
        snapshot = recommender._snapshot
        made = vars(vars(snapshot)["search"])
        fresh = TitleSearch(snapshot.catalogue).ready()
        assert (made["_words"], made["_titles"]) == (fresh._words, fresh._titles)
        assert {word: sorted(rows) for word, rows in made["_rows"].items()} == {
            word: rows.tolist() for word, rows in fresh._rows.items()
        }
        brand, price = (snapshot.catalogue.fields[name] for name in ("brand", "price"))
        by_value = replace(brand).rows_by_value
        assert {key: sorted(rows) for key, rows in vars(brand)["rows_by_value"].items()} == {
            key: rows.tolist() for key, rows in by_value.items()
        }
        np.testing.assert_array_equal(vars(price)["numbers"], replace(price).numbers)
        for text in ("r", "film", "two w", "i1", ""):
            assert snapshot.search.find(text, 30) == fresh.find(text, 30)
