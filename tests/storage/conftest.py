"""A storage of each kind, and a folder to save in it."""

import pytest


@pytest.fixture(params=["path", "uri", "s3"])
def storage(request, tmp_path):
    """A storage given as a path, as a URI of this machine, or as one of an S3 server."""
    if request.param == "s3":
        bucket = f"bucket-{tmp_path.name.replace('_', '-').lower()}"
        request.getfixturevalue("s3").create_bucket(Bucket=bucket)
        return f"s3://{bucket}"
    return str(tmp_path) if request.param == "path" else f"file://{tmp_path}"


@pytest.fixture
def made(tmp_path):
    """A folder as a training saves it: files, one of them in a sub-folder."""
    (tmp_path / "made" / "model").mkdir(parents=True)
    (tmp_path / "made" / "state.json").write_text("{}")
    (tmp_path / "made" / "model" / "weights").write_bytes(bytes(1000))
    return tmp_path / "made"
