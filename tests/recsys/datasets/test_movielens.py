"""`packedbag.recsys.datasets.movielens`."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedbag.core.errors import DataError
from packedbag.recsys.datasets.movielens import HISTORY, MovieLens, history
from packedbag.recsys.split import TEST, TRAIN, VALID
from tests.recsys.datasets import movielens_files as files

RATINGS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.booleans(), st.sampled_from((TRAIN, VALID, TEST))),
    min_size=1,
    max_size=40,
)


def histories(rows):
    users, times, labels, parts = zip(*rows, strict=True)
    offsets, positions = history(
        list(users), np.array(times, float), np.array(labels, np.float32), np.array(parts, np.uint8)
    )
    return [positions[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@given(rows=RATINGS)
def test_a_history_is_what_the_user_liked_strictly_before_in_training_rows(rows):
    for row, found in zip(rows, histories(rows), strict=True):
        user, time, _, _ = row
        expected = [i for i, (u, t, liked, p) in enumerate(rows) if u == user and t < time and liked and p == TRAIN]
        assert found == sorted(expected, key=lambda i: (rows[i][1], i))


@given(rows=RATINGS, data=st.data())
def test_no_label_reaches_its_own_row_or_an_earlier_one_and_no_held_out_label_reaches_any(rows, data):
    changed = data.draw(st.integers(0, len(rows) - 1))
    user, time, liked, part = rows[changed]
    after = [*rows[:changed], (user, time, not liked, part), *rows[changed + 1 :]]
    differing = [i for i, (a, b) in enumerate(zip(histories(rows), histories(after), strict=True)) if a != b]
    if part != TRAIN:
        assert differing == []
    assert all(rows[i][0] == user and rows[i][1] > time for i in differing)


def test_a_history_holds_the_latest_films_only():
    rows = [("a", t, True, TRAIN) for t in range(HISTORY + 20)]
    assert histories(rows)[-1] == list(range(19, HISTORY + 19))


def test_the_fields_of_a_row_are_looked_up(tmp_path):
    ratings = [(3, 5, 4, 100), (3, 6, 3, 101), (3, 7, 5, 102)] * 40
    (chunk,) = MovieLens(files.folder(tmp_path / "d", files.texts(ratings))).chunks()
    user, item, age, gender, occupation, genres, _ = chunk.columns
    assert chunk.labels[:3].tolist() == [1.0, 0.0, 1.0]
    assert [c.text[0] for c in (user, item, age, gender, occupation)] == ["3", "5", "23", "F", "worker"]
    assert genres.text[: genres.offsets[1]] == ["Drama", "War", "Noir"]
    assert chunk.times[:3].tolist() == [100.0, 101.0, 102.0]


def test_the_data_set_is_split_as_its_history_was(tmp_path):
    source = MovieLens(files.folder(tmp_path / "d"), seed=5)
    (chunk,) = source.chunks()
    parts = source.split.parts(np.arange(len(chunk)), chunk.times)
    train_liked = {
        (chunk.columns[0].text[i], chunk.columns[1].text[i]) for i in np.flatnonzero((parts == 0) & (chunk.labels == 1))
    }
    held_out_liked = {
        (chunk.columns[0].text[i], chunk.columns[1].text[i]) for i in np.flatnonzero((parts != 0) & (chunk.labels == 1))
    } - train_liked
    past = chunk.columns[6]
    seen = {
        (user, film)
        for user, a, b in zip(chunk.columns[0].text, past.offsets[:-1], past.offsets[1:], strict=True)
        for film in past.text[a:b]
    }
    assert held_out_liked
    assert seen
    assert seen <= train_liked


def test_a_wheel_and_a_folder_give_the_same(tmp_path):
    (a,) = MovieLens(files.folder(tmp_path / "d"), split="time").chunks()
    (b,) = MovieLens(files.wheel(tmp_path / "w.whl"), split="time").chunks()
    assert [c.text for c in a.columns] == [c.text for c in b.columns]
    np.testing.assert_array_equal(a.labels, b.labels)


def broken(name, old, new):
    changed = files.texts()
    assert old in changed[name]
    changed[name] = changed[name].replace(old, new, 1)
    return changed


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("ml-100k.inter", "rating:float", "stars:float", r"ml-100k\.inter, line 1: names no column 'rating'; its"),
        ("ml-100k.item", "2\tFilm 2\t", "2\t", r"ml-100k\.item, line 3: has 3 columns where the first line names 4"),
        ("ml-100k.user", "1\t21\t", "99\t21\t", r"ml-100k\.inter, line \d+: names '1', which ml-100k\.user does not"),
        ("ml-100k.item", "1\tFilm 1\t", "99\tFilm 1\t", r"line \d+: names '1', which ml-100k\.item does not list"),
    ],
)
def test_damaged_files_are_named_with_the_line(tmp_path, name, old, new, message):
    with pytest.raises(DataError, match=message):
        MovieLens(files.folder(tmp_path / "d", broken(name, old, new)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1, 1, "good", 5), "line 2: the label is 'good', which is not a number"),
        ((1, 1, 5, "noon"), "line 2: the timestamp is 'noon', which is not a number"),
    ],
)
def test_values_that_are_no_numbers_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        MovieLens(files.folder(tmp_path / "d", files.texts([row])))


def test_missing_short_and_foreign_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none: cannot be read: No such file or directory.*a folder or a wheel"):
        MovieLens(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"ml-100k\.inter: cannot be read: No such file or directory"):
        MovieLens(tmp_path / "empty")
    whole = files.wheel(tmp_path / "w.whl")
    whole.write_bytes(whole.read_bytes()[:500])
    with pytest.raises(DataError, match=r"w\.whl: is not a whole wheel"):
        MovieLens(whole)
    partly = files.texts()
    del partly["ml-100k.user"]
    with pytest.raises(DataError, match=r"holds no recbole/dataset_example/ml-100k/ml-100k\.user"):
        MovieLens(files.wheel(tmp_path / "p.whl", partly))
    texts = files.texts()
    folder = files.folder(tmp_path / "latin", texts)
    (folder / "ml-100k.item").write_bytes(texts["ml-100k.item"].encode().replace(b"Film 3", b"Caf\xe9"))
    with pytest.raises(DataError, match=r"ml-100k\.item, line 4: is not UTF-8 text"):
        MovieLens(folder)


def test_a_file_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"ml-100k\.inter: has no rows"):
        MovieLens(files.folder(tmp_path / "d", files.texts([])))
