"""Files of labels: every form is read, and what is wrong is named by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labelled import table
from tastemaker.reward_training import choices, ratings
from tastemaker.reward_training.settings import Columns


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def rated(data: str | Path, **more: Any) -> list[tuple[str, float, str]]:
    found = ratings.read(str(data), **{"columns": Columns(), **more}).labels
    return [(one.picture.name, one.value, one.prompt) for one in found]


def chosen(data: str | Path, **more: Any) -> list[tuple[str, str, str, float]]:
    found = choices.read(str(data), **{"columns": Columns(), **more}).labels
    return [(one.prompt, one.first.name, one.second.name, one.share) for one in found]


def refused(work: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(ValueError) as caught:
        work(*args, **more)
    return str(caught.value)


# ---- ratings


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_tables_of_ratings(place: Path, name: str) -> None:
    file = table(place / name, ["image", "rating", "prompt"], [["a.png", 3, "a cat"], ["b.png", 4.5, "a dog"]])
    assert rated(file) == [("a.png", 3.0, "a cat"), ("b.png", 4.5, "a dog")]


def test_known_names_of_columns_and_named_ones(place: Path) -> None:
    file = table(place / "r.csv", ["file_name", "score", "stars"], [["a.png", 3, 1], ["b.png", 4, 2]])
    assert [value for _, value, _ in rated(file)] == [3, 4]
    assert [value for _, value, _ in rated(file, columns=Columns(rating="stars"))] == [1, 2]
    told = refused(rated, file, columns=Columns(rating="beauty"))
    assert "r.csv:2: there is no column `beauty` (--columns.rating); found file_name, score, stars." in told


def test_a_picture_may_lie_elsewhere_and_be_rated_twice(place: Path) -> None:
    (place / "there").mkdir()
    (place / "a.png").rename(place / "there" / "a.png")
    file = table(place / "r.csv", ["image", "rating"], [["a.png", 3], ["a.png", 5]])
    assert rated(file, pictures=str(place / "there")) == [("a.png", 3.0, ""), ("a.png", 5.0, "")]
    assert "pictures: there is no folder" in refused(rated, file, pictures=str(place / "nowhere"))


def test_folders_called_as_their_ratings(place: Path) -> None:
    for name, rating in (("a.png", "1"), ("b.png", "2.5"), ("c.png", "2.5")):
        (place / "f" / rating).mkdir(parents=True, exist_ok=True)
        (place / name).rename(place / "f" / rating / name)
    assert rated(place / "f") == [("a.png", 1.0, ""), ("b.png", 2.5, ""), ("c.png", 2.5, "")]
    (place / "f" / "good").mkdir()
    (place / "f" / "good" / "d.png").write_bytes(b"d")
    assert "good/d.png: rating is 'good'; it is a number." in refused(rated, place / "f")
    assert "holds neither metadata.csv nor folders called as ratings" in refused(rated, _made(place / "empty"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_folder_with_its_table(place: Path) -> None:
    table(place / "metadata.jsonl", ["file_name", "rating", "text"], [["a.png", 3, "a cat"]])
    assert rated(place) == [("a.png", 3.0, "a cat")]


def test_ava(place: Path) -> None:
    (place / "7.jpg").write_bytes(b"x")
    file = place / "AVA.txt"
    file.write_text("1 7 0 1 5 17 38 36 15 6 5 1 1 22 1396\n")
    people = [0, 1, 5, 17, 38, 36, 15, 6, 5, 1]
    mean = sum(k * n for k, n in enumerate(people, 1)) / sum(people)
    assert rated(file, pictures=str(place)) == [("7.jpg", pytest.approx(mean), "")]
    assert "--pictures" in refused(rated, file)
    file.write_text("1 7 0 1 5 17\n")
    assert "AVA.txt:1: AVA's lines hold 15 whole numbers" in refused(rated, file, pictures=str(place))
    file.write_text("1 7 0 0 0 0 0 0 0 0 0 0 1 22 1396\n")
    assert "AVA.txt:1: nobody rated picture 7" in refused(rated, file, pictures=str(place))


def test_wrong_rows_are_named_by_line(place: Path) -> None:
    rows = [["a.png", 3], ["gone.png", 4], ["b.png", "good"], ["c.png", "nan"], ["", 3], ["c.png", ""], ["a.png", "x"]]
    told = refused(rated, table(place / "r.csv", ["image", "rating"], rows))
    assert f"r.csv:3: image: there is no file {place / 'gone.png'}." in told
    for said in ("r.csv:4: rating is 'good'; it is a number.", "r.csv:5: rating is 'nan'", "r.csv:6: image is ''"):
        assert said in told
    assert "r.csv:8" not in told and told.endswith("... and 1 more rows")
    assert told.startswith("data: ")


def test_tables_that_are_none(place: Path) -> None:
    assert "there is no" in refused(rated, place / "nothing.csv")
    (place / "r.csv").write_text("image,rating\na.png\n")
    assert "r.csv:2: 1 cells, but 2 columns" in refused(rated, place / "r.csv")
    (place / "r.csv").write_text("image,rating\n")
    assert "r.csv holds no label: it is empty." in refused(rated, place / "r.csv")
    (place / "r.csv").write_text("image,image\na.png,b.png\n")
    assert "more than one column is called 'image'" in refused(rated, place / "r.csv")
    (place / "r.jsonl").write_text('{"image": "a.png"\n')
    assert "r.jsonl:1: not JSON" in refused(rated, place / "r.jsonl")
    (place / "r.xlsx").write_text("x")
    assert "give .csv, .tsv, .jsonl or .parquet, or a folder" in refused(rated, place / "r.xlsx")
    (place / "r.csv").write_text("name,value\na.png,3\n")
    assert "there is no column with pictures: none of image, file_name" in refused(rated, place / "r.csv")


# ---- choices


def test_winners_and_losers(place: Path) -> None:
    file = table(place / "v.jsonl", ["prompt", "winner", "loser"], [["a cat", "a.png", "b.png"]])
    assert chosen(file) == [("a cat", "a.png", "b.png", 1.0)]


def test_votes_and_ties(place: Path) -> None:
    rows = [["a cat", "a.png", "b.png", vote] for vote in ("left", "right", "tie")]
    file = table(place / "v.jsonl", ["prompt", "left", "right", "vote"], rows)
    assert [share for *_, share in chosen(file)] == [1.0, 0.0, 0.5]
    found = choices.read(file, columns=Columns(), ties="leave_out")
    assert [one.share for one in found.labels] == [1.0, 0.0] and found.passed_over == 1
    rows = [["a cat", "a.png", "b.png", "up"]]
    told = refused(chosen, table(place / "v.jsonl", ["prompt", "left", "right", "vote"], rows))
    assert "v.jsonl:1: vote is 'up'; it is one of left, right, tie." in told


def test_pick_a_pics_columns(place: Path) -> None:
    names = ["caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label"]
    rows = [
        ["a", "a.png", "b.png", 1, 0, True],
        ["b", "a.png", "c.png", 0.5, 0.5, True],
        ["c", "b.png", "c.png", 0, 1, False],
    ]
    found = choices.read(table(place / "v.csv", names, rows), columns=Columns())
    assert [(one.prompt, one.share) for one in found.labels] == [("a", 1.0), ("b", 0.5)] and found.passed_over == 1
    told = refused(chosen, table(place / "v.csv", names, [["a", "a.png", "b.png", 2, 0, True]]))
    assert "v.csv:2: label_0 is 2; it is from 0 to 1" in told


def test_ones_own_columns(place: Path) -> None:
    file = table(place / "v.csv", ["q", "x", "y", "p"], [["a cat", "a.png", "b.png", 0.75]])
    own = Columns(prompt="q", first="x", second="y", label="p")
    assert chosen(file, columns=own) == [("a cat", "a.png", "b.png", 0.75)]


def test_a_folder_of_pairs(place: Path) -> None:
    pair = _made(place / "f") / "1"
    pair.mkdir()
    (pair / "prompt.txt").write_text("a cat")
    for name in ("winner", "loser"):
        (pair / f"{name}.png").write_bytes(name.encode())
    assert chosen(place / "f") == [("a cat", "winner.png", "loser.png", 1.0)]
    (pair / "loser.png").unlink()
    assert refused(chosen, place / "f").startswith("data: ")


def test_wrong_choices_are_named_by_line(place: Path) -> None:
    names = ["prompt", "winner", "loser"]
    rows = [["a cat", "a.png", "a.png"], ["", "a.png", "b.png"], ["a cat", "a.png", "gone.png"], ["a cat", "a.png", 3]]
    told = refused(chosen, table(place / "v.jsonl", names, rows))
    assert f"v.jsonl:1: winner and loser are the same picture, {place / 'a.png'}" in told
    assert "v.jsonl:2: the prompt is ''; it is a text." in told
    assert "v.jsonl:3: loser: there is no file" in told and "v.jsonl:4: loser is 3; it is the name of a file." in told
    told = refused(chosen, table(place / "v.jsonl", ["prompt", "winner"], [["a cat", "a.png"]]))
    assert "v.jsonl:1: there is no column `loser`; found prompt, winner." in told
    told = refused(chosen, table(place / "v.jsonl", ["winner", "loser"], [["a.png", "b.png"]]))
    assert "there is no column with prompts" in told


def test_a_file_of_ties_alone(place: Path) -> None:
    file = table(place / "v.jsonl", ["prompt", "left", "right", "vote"], [["a cat", "a.png", "b.png", "tie"]])
    assert "all rows are passed over" in refused(chosen, file, ties="leave_out")


# ---- parquet


def test_without_pyarrow_it_is_told_how_to_install_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (place / "v.parquet").write_bytes(b"PAR1")
    assert "pip install 'tastemaker[data]'" in refused(chosen, place / "v.parquet")


def test_pictures_in_parquet(place: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {
        "caption": ["a", "b", "c"],
        "jpg_0": [b"one", b"two", b"three"],
        "jpg_1": [{"bytes": b"four", "path": None}, {"bytes": b"five", "path": None}, {"bytes": b"six", "path": None}],
        "label_0": [1.0, 0.0, 0.5],
        "has_label": [True, True, False],
    }
    parquet.write_table(arrow.table(rows), place / "v.parquet", row_group_size=2)
    found = choices.read(str(place / "v.parquet"), columns=Columns())
    assert [(one.first.read_bytes(), one.second.read_bytes(), one.share) for one in found.labels] == [
        (b"one", b"four", 1.0),
        (b"two", b"five", 0.0),
    ]
    assert found.labels[1].place.endswith("v.parquet: row 2")
    assert len(chosen_all := choices.read(str(place), columns=Columns()).labels) == 2 and chosen_all[0].prompt == "a"
    rows["jpg_0"] = [b"one", None, b"three"]
    parquet.write_table(arrow.table(rows), place / "v.parquet")
    with pytest.raises(ValueError, match=r"v\.parquet \(jpg_0, row 2 of group 1\) holds no picture"):
        choices.read(str(place / "v.parquet"), columns=Columns()).labels[1].first.read_bytes()
    rows["label_0"] = [1.0, 7.0, 0.5]
    parquet.write_table(arrow.table(rows), place / "v.parquet")
    assert "v.parquet: row 2: label_0 is 7" in refused(chosen, place / "v.parquet")


def test_json_keeps_what_csv_has_as_text(place: Path) -> None:
    (place / "r.jsonl").write_text(json.dumps({"image": "a.png", "rating": True}) + "\n")
    assert "rating is True; it is a number." in refused(rated, place / "r.jsonl")


def test_relative_paths_are_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = _made(place / "f") / "1"
    pair.mkdir()
    (pair / "prompt.txt").write_text("a cat")
    for name in ("winner", "loser"):
        (pair / f"{name}.png").write_bytes(name.encode())
    table(place / "r.csv", ["image", "rating"], [["a.png", 3]])
    monkeypatch.chdir(place)
    assert chosen("f") == [("a cat", "winner.png", "loser.png", 1.0)]
    assert rated("r.csv") == rated("./r.csv", pictures=".") == [("a.png", 3.0, "")]


def test_settings_without_effect_are_refused(place: Path) -> None:
    file = table(place / "v.jsonl", ["prompt", "winner", "loser"], [["a cat", "a.png", "b.png"]])
    assert "columns.rating has no effect on choices" in refused(chosen, file, columns=Columns(rating="p"))
    assert "columns.label stands alone" in refused(chosen, file, columns=Columns(label="p"))
    file = table(place / "r.csv", ["image", "rating"], [["a.png", 3]])
    assert "columns.first has no effect on ratings" in refused(rated, file, columns=Columns(first="p"))
    (place / "f" / "1").mkdir(parents=True)
    (place / "a.png").rename(place / "f" / "1" / "a.png")
    assert "columns.image has no effect on" in refused(rated, place / "f", columns=Columns(image="p"))
    assert "pictures has no effect on" in refused(rated, place / "f", pictures=str(place))


def test_cells_that_are_strange(place: Path) -> None:
    (place / " a.png").write_bytes(b"blank")
    assert rated(table(place / "r.jsonl", ["image", "rating"], [[" a.png", 3]])) == [(" a.png", 3.0, "")]
    assert rated(table(place / "r.csv", ["image", "rating", "text"], [["a.png", 3, ""]])) == [("a.png", 3.0, "")]
    for image, said in (("~nobody/x.png", "there is no file"), ("x" * 400, "there is no file")):
        assert f"r.jsonl:1: image: {said}" in refused(
            rated, table(place / "r.jsonl", ["image", "rating"], [[image, 3]])
        )
    (place / "r.jsonl").write_text('{"image": "a.png", "rating": 1' + "0" * 400 + "}\n")
    assert "r.jsonl:1: rating is 1000" in refused(rated, place / "r.jsonl")


def test_a_picture_that_was_drawn_anew_is_named_by_line(place: Path) -> None:
    names = ["prompt", "left", "right", "vote", "content"]
    file = table(place / "v.jsonl", names, [["a cat", "a.png", "b.png", "left", {"a.png": "0" * 16}]])
    assert "v.jsonl:1: " in refused(chosen, file) and "is not the picture any more" in refused(chosen, file)
