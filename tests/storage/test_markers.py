"""Marks say whether two machines mean the same place, and nothing of them stays."""

import pytest

from adept_ray.storage.markers import answer_mark, has_answer, leave_mark, remove_marks


def test_a_shared_place_is_recognised_and_left_as_it_was(tmp_path):
    """A folder that nobody has made yet is made; other files in it stay."""
    place = str(tmp_path / "shared")
    leave_mark(place, "token")
    (tmp_path / "shared" / "other").write_text("")
    assert answer_mark(place, "token", "node") == "" and has_answer(place, "token", "node")
    assert not has_answer(place, "token", "stranger")
    remove_marks(place, "token")
    assert [file.name for file in (tmp_path / "shared").iterdir()] == ["other"]


def test_a_place_of_ones_own_is_not_the_shared_one(tmp_path):
    """None of that path, one without the mark, one with another mark: each is said, and nothing is made."""
    for name, said in (("none", "no such place"), ("empty", "isn't in it"), ("other", "reads otherwise")):
        place = tmp_path / name
        if name != "none":
            place.mkdir()
        if name == "other":
            (place / ".doctor-token").write_text("another")
        before = sorted(tmp_path.rglob("*"))
        assert said in answer_mark(str(place), "token", "node")
        assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_is_no_place_is_said_and_not_raised(tmp_path):
    """A node answers whatever its file systems raise; the command hears of it before it asks others."""
    assert "can't be used there" in answer_mark("nosuch://bucket/x", "token", "node")
    with pytest.raises(ValueError):
        leave_mark("nosuch://bucket/x", "token")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError):
        leave_mark(str(file / "below"), "token")


def test_places_behind_uris_are_compared_like_folders(s3):
    """A bucket that both reach is the same; another one isn't."""
    for name in ("shared", "other"):
        s3.create_bucket(Bucket=name)
    leave_mark("s3://shared/x", "token")
    s3.put_object(Bucket="other", Key="x/file")
    assert answer_mark("s3://shared/x", "token", "node") == "" and has_answer(
        "s3://shared/x", "token", "node"
    )
    assert answer_mark("s3://other/x", "token", "node")
    remove_marks("s3://shared/x", "token")
    kept = s3.list_objects_v2(Bucket="shared").get("Contents", [])
    assert not [each["Key"] for each in kept if "token" in each["Key"]]
