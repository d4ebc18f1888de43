"""Importers: small files in the shape of the published ones become the two tables."""

import gzip
import json
import subprocess
import sys

import pandas as pd
import pytest

from recipes.data.importers import import_data
from recipes.data.tables import read_data
from tests.conftest import ROOT


def imported(name, source, folder):
    import_data(name, source, folder)
    data = read_data(str(folder))
    items = data.catalogue.item_ids
    histories = {
        user: [items[row] for row in rows]
        for user, rows in zip(data.user_ids, data.histories, strict=True)
    }
    return data, histories


def fields(data, item):
    row = data.catalogue.row_of[item]
    return {name: values[row] for name, values in data.catalogue.fields.items() if values[row]}


def lines(file, records, form=json.dumps):
    text = "".join(form(record) + "\n" for record in records)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text)


def test_movielens_1m(tmp_path):
    (tmp_path / "ratings.dat").write_text(
        "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
    )
    (tmp_path / "movies.dat").write_bytes(
        "661::Léon: The Professional (1994)::Crime|Drama\n1193::Cuckoo's Nest (1975)::Drama\n"
        "9::Sudden Death (1995)::Action\n".encode("latin-1")
    )
    data, histories = imported("movielens-1m", tmp_path, tmp_path / "out")
    assert histories == {"1": ["1193", "661"], "2": ["1193"]}
    assert data.timestamps[0].tolist() == [978300760, 978302109]
    expected = {"title": "Léon: The Professional (1994)", "categories": "Crime, Drama"}
    assert fields(data, "661") == expected
    assert "9" not in data.catalogue.row_of, "nobody chose it"


def test_movielens_32m(tmp_path):
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,17,4.0,944249077\n1,25,1.0,944250228\n2,17,0.5,9\n"
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n17,"Sense & Sensibility, A (1995)",Drama|Romance\n'
        "25,Leaving (1995),(no genres listed)\n"
    )
    data, histories = imported("movielens-32m", tmp_path, tmp_path / "out")
    assert histories == {"1": ["17", "25"], "2": ["17"]}
    assert fields(data, "17") == {
        "title": "Sense & Sensibility, A (1995)", "categories": "Drama, Romance",
    }  # fmt: skip
    assert fields(data, "25") == {"title": "Leaving (1995)"}


RATINGS = "userId,movieId,rating,timestamp\r\n1,010,4.0,944249077\r\n2,25,1.0,944250228\r\n"
MOVIES = "movieId,title,genres\n010,Sense (1995),Drama\n25,Leaving (1995),Drama\n"


def movielens(folder, ratings=RATINGS, movies=MOVIES):
    (folder / "ratings.csv").write_bytes(ratings.encode())
    (folder / "movies.csv").write_bytes(movies.encode())
    return imported("movielens-32m", folder, folder / "out")


def test_ids_of_movielens_are_the_strings_that_are_written(tmp_path):
    data, histories = movielens(tmp_path)
    assert histories == {"1": ["010"], "2": ["25"]}
    assert fields(data, "010")["title"] == "Sense (1995)"


@pytest.mark.parametrize(
    "end", range(len(RATINGS) - len("2,25,1.0,944250228\r\n") + 1, len(RATINGS))
)
def test_ratings_that_were_cut_anywhere_are_refused(tmp_path, end):
    with pytest.raises(ValueError, match=r"ratings.csv .*(line |Row #)3"):
        movielens(tmp_path, RATINGS[:end])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2,25,", "2,,", "ratings.csv line 3 has no `movieId`; complete or drop it"),
        ("1.0,944250228", "1.0,", "ratings.csv line 3 has no `timestamp`; complete or drop it"),
        ("\r\n2,", "\n\n2,", "ratings.csv line 3 has no `userId`"),
        ("2,25,1.0", "2,25,1,0", "ratings.csv is no table .*Row #3: Expected 4 columns, got 5"),
        (",1.0,", ",good,", "interactions row 1: `rating` is 'good'; give a finite number"),
        ("userId", "user", "ratings.csv has no `userId` .it has user, movieId, .*another data set"),
        ("010,4.0,944249077\r\n2,25", "7,4.0,944249077\r\n2,8", "knows none of the 2 items .*'7'"),
    ],
)
def test_ratings_that_are_incomplete_or_of_other_items_are_refused(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        movielens(tmp_path, RATINGS.replace(old, new))
    assert not (tmp_path / "out").exists()


def test_movies_of_another_edition_or_cut_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="movies.csv has no `genres` .*; it is of another data set"
    ):
        movielens(tmp_path, movies=MOVIES.replace("genres", "tags"))
    with pytest.raises(
        ValueError, match="movies.csv line 3 has no end; the file may have been cut"
    ):
        movielens(tmp_path, movies=MOVIES[:-3])


def test_amazon_2014(tmp_path):
    review = {"overall": 5.0, "reviewText": "It&#39;s fine", "helpful": [0, 0]}
    reviews = [
        review | {"reviewerID": "A1", "asin": "0000031887", "unixReviewTime": 1252800000},
        review | {"reviewerID": "A1", "asin": "B00005N7P0", "unixReviewTime": 1152800000},
        review | {"reviewerID": "A1", "asin": "B00005N7P0", "unixReviewTime": 1152800000},
        review | {"reviewerID": "A2", "asin": "nometa", "unixReviewTime": 1252800000},
        review | {"asin": "B00005N7P0", "unixReviewTime": 1252800000},
    ]
    lines(tmp_path / "reviews_Toys_5.json.gz", reviews)
    meta = [
        {"asin": "0000031887", "title": "Girls &amp; Boys", "price": 7.99, "brand": "Coxlures",
         "categories": [["Clothing", "Girls"], ["Sports"]], "description": "It's &quot;new&quot;"},
        {"asin": "B00005N7P0", "title": "None", "salesRank": {"Toys": 1}},
        {"asin": "never bought", "title": "C"},
    ]  # fmt: skip
    lines(tmp_path / "meta_Toys.json.gz", meta, repr)  # as published: Python, not JSON
    data, histories = imported("amazon-2014", tmp_path, tmp_path / "out")
    assert histories == {"A1": ["B00005N7P0", "0000031887"], "A2": ["nometa"]}
    assert data.reviews[1] == ["It's fine"]
    assert fields(data, "0000031887") == {
        "title": "Girls & Boys", "price": "7.99", "brand": "Coxlures",
        "categories": "Clothing > Girls", "description": 'It\'s "new"',
    }  # fmt: skip
    assert fields(data, "B00005N7P0") == {"title": "None"} and fields(data, "nometa") == {}


def test_amazon_2023(tmp_path):
    review = {"rating": 5.0, "title": "Such", "text": "A &lt; B", "images": [], "asin": "x"}
    reviews = [
        review | {"parent_asin": "B1", "user_id": "AG", "timestamp": 1588687728923},
        review | {"parent_asin": "0123", "user_id": "AG", "timestamp": 1588615855070},
        review | {"parent_asin": "B2", "user_id": "AF", "timestamp": 1589665266052},
    ]
    lines(tmp_path / "All_Beauty.jsonl", reviews)
    base = {"features": [], "description": [], "store": None, "categories": [], "price": None}
    meta = [
        base | {"parent_asin": "B1", "title": "Oil &amp; Brush", "store": "Howard",
                "categories": ["Beauty", "Hair Care"], "description": ["One.", "Two."]},
        base | {"parent_asin": "0123", "title": "Comb", "features": ["Fine", "teeth"],
                "price": "—"},
        base | {"parent_asin": "B2", "title": "Soap", "price": 12.5},
    ]  # fmt: skip
    text = "".join(json.dumps(record) + "\n" for record in meta)
    (tmp_path / "meta_All_Beauty.jsonl").write_text(text.replace("12.5", "12.50"))
    data, histories = imported("amazon-2023", tmp_path, tmp_path / "out")
    assert histories == {"AF": ["B2"], "AG": ["0123", "B1"]}
    assert data.timestamps[0].tolist() == [1589665266.052] and data.reviews[0] == ["A < B"]
    assert fields(data, "B1") == {
        "title": "Oil & Brush", "brand": "Howard", "categories": "Beauty > Hair Care",
        "description": "One. Two.",
    }  # fmt: skip
    assert fields(data, "0123") == {"title": "Comb", "description": "Fine teeth"}
    assert fields(data, "B2") == {"title": "Soap", "price": "12.50"}


def test_steam(tmp_path):
    reviews = [
        {"username": "Chaos", "product_id": "725280", "date": "2017-12-17", "text": "Yes"},
        {"username": "Chaos", "product_id": "328100", "date": "2017-12-16", "text": "No"},
        {"product_id": "328100", "date": "2017-12-16", "text": "nobody"},
    ]
    lines(tmp_path / "steam_reviews.json.gz", reviews, repr)
    games = [
        {"id": "725280", "app_name": "Lost Summoner", "developer": "Koto", "price": 4.99,
         "genres": ["Action", "Indie"], "tags": ["Card", "RPG"]},
        {"id": "328100", "title": "Real Pool", "price": "Free To Play"},
        {"app_name": "no id"},
    ]  # fmt: skip
    lines(tmp_path / "steam_games.json.gz", games, repr)
    data, histories = imported("steam", tmp_path, tmp_path / "out")
    assert histories == {"Chaos": ["328100", "725280"]}
    assert fields(data, "725280") == {
        "title": "Lost Summoner", "brand": "Koto", "price": "4.99", "categories": "Action, Indie",
        "description": "Card, RPG",
    }  # fmt: skip
    assert fields(data, "328100") == {"title": "Real Pool", "price": "Free To Play"}


def steam_files(folder, reviews, games="{'id': '1', 'app_name': 'A'}\n"):
    for name, content in (("steam_reviews.json", reviews), ("steam_games.json", games)):
        packed = isinstance(content, bytes)
        file = folder / (f"{name}.gz" if packed else name)
        file.write_bytes(content if packed else content.encode("latin-1"))
    return folder


def steam_review(**fields):
    review = {"username": "u", "product_id": "1", "date": "2017-12-17", "text": "Yes"} | fields
    return json.dumps(review) + "\n"


def test_a_review_without_user_item_or_time_is_left_out_and_counted(tmp_path, capsys):
    odd = [{"date": ""}, {"date": None}, {"username": ""}, {"product_id": None}, {}]
    reviews = steam_review(text="No", date="2017-12-16")
    reviews += "".join(steam_review(**fields) for fields in odd)
    data, histories = imported("steam", steam_files(tmp_path, reviews), tmp_path / "out")
    assert histories == {"u": ["1", "1"]} and data.reviews == [["No", "Yes"]]
    assert data.timestamps[0].tolist() == [1513382400, 1513468800]
    assert "2 interactions; 4 had no user, item or time" in capsys.readouterr().out


PACKED = gzip.compress(steam_review().encode() * 9, mtime=0)


@pytest.mark.parametrize(
    ("reviews", "message"),
    [
        (PACKED[:-20], "steam_reviews.json.gz cannot be unpacked .*; it may have been cut"),
        (PACKED[:10] + b"\xff" * 9, "steam_reviews.json.gz cannot be unpacked"),
        (steam_review().encode(), "steam_reviews.json.gz cannot be unpacked"),
        ('{"text": "Caf\xe9"}', "steam_reviews.json is not UTF-8 .*; save it as UTF-8"),
        (
            '{"user": "u", "item": 1}',
            "steam_reviews.json has no `username` .it has user, item.; it",
        ),
        ("", "steam_reviews.json has no `username` .it has nothing.; it is of another data set"),
        (steam_review(date=""), "has no interaction with user, item and time"),
        (steam_review() + '["u", "1"]', "steam_reviews.json line 2 is no record"),
        (steam_review() + "7", "steam_reviews.json line 2 is no record"),
        (steam_review() + "[" * 99_999, "steam_reviews.json line 2 is no record"),
        (steam_review() + "{[]: 1}", "steam_reviews.json line 2 is no record"),
        (steam_review() + '{"a": ' + "7" * 5000 + "}", "steam_reviews.json line 2 is no record"),
        (
            steam_review(product_id="2"),
            "catalogue knows none of the 1 items .* first is '2'; put b",
        ),
        (steam_review(product_id=["1"]), r"interactions row 0: `item_id` is \['1'\]"),
        (steam_review(text={"a": 1}), "interactions row 0: `review_text` is {'a': 1}; give text"),
        (steam_review(date="yesterday"), "interactions row 0: `timestamp` holds neither"),
    ],
    ids=range(16),
)
def test_files_that_cannot_be_read_are_named(tmp_path, reviews, message):
    with pytest.raises(ValueError, match=message):
        import_data("steam", steam_files(tmp_path, reviews), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_meta_of_another_edition_is_named(tmp_path, capsys):
    """Of 2018 there are meta files whose categories have another name, and no prices."""
    review = {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1252800000, "overall": 5.0}
    lines(tmp_path / "reviews_Toys.json", [review])
    meta = {"asin": "B1", "title": "A", "brand": "", "description": ["B"], "category": ["Toys"]}
    lines(tmp_path / "meta_Toys.json", [meta])
    import_data("amazon-2014", tmp_path, tmp_path / "out")
    said = capsys.readouterr().out
    assert "meta_Toys.json has no `categories`; it stays empty." in said
    assert "meta_Toys.json has no `price`; it stays empty." in said and "`brand`" not in said
    lines(tmp_path / "meta_Toys.json", [{"parent_asin": "B1", "title": "A"}])
    with pytest.raises(
        ValueError, match="meta_Toys.json has no `asin` .it has parent_asin, title."
    ):
        import_data("amazon-2014", tmp_path, tmp_path / "other")


def test_what_is_missing_twice_or_cut_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="`SOURCE` .*nowhere is no folder"):
        import_data("steam", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"has no meta_\*.jsonl\*"):
        import_data("amazon-2023", tmp_path, tmp_path / "out")
    for name in ("meta_A.jsonl", "meta_B.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="has meta_A.jsonl, meta_B.jsonl; keep one"):
        import_data("amazon-2023", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="is there already; name a new or an empty one"):
        import_data("amazon-2023", tmp_path, tmp_path)
    (tmp_path / "meta_B.jsonl").unlink()
    (tmp_path / "A.jsonl").write_text('{"user_id": "u"}\n{"user_')
    with pytest.raises(ValueError, match="A.jsonl line 2 is no record; the file may have been cut"):
        import_data("amazon-2023", tmp_path, tmp_path / "out")
    (tmp_path / "ratings.dat").write_text("1::2::3\n")
    with pytest.raises(ValueError, match="ratings.dat line 1 has 3 of 4 fields"):
        import_data("movielens-1m", tmp_path, tmp_path / "out")
    for text, message in (
        ("1::2::::978300760\n", "ratings.dat line 1 has no `rating`; complete or drop it"),
        ("1::2::3::9783", "ratings.dat line 1 has no end; the file may have been cut"),
        ("", "ratings.dat is empty"),
    ):
        (tmp_path / "ratings.dat").write_text(text)
        with pytest.raises(ValueError, match=message):
            import_data("movielens-1m", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::7::5::978300760\n")
    (tmp_path / "movies.dat").write_text("7::A::Drama\n")
    command = [sys.executable, "-m", "recipes.data.importers"]

    def run(*arguments):
        return subprocess.run(
            [*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
        )

    done = run("movielens-1m", tmp_path, tmp_path / "out")
    assert done.returncode == 0 and "pass it as --dataset_name" in done.stdout, done.stderr
    assert pd.read_parquet(tmp_path / "out" / "items.parquet").title.tolist() == ["A"]
    done = run("movielens-2m", tmp_path, tmp_path / "other")
    assert done.returncode == 2 and "'movielens-2m'" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
