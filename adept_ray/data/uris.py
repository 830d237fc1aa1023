"""Files behind a URI: listed with what tells their versions apart, and read by ranges."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

from adept_ray.config.errors import UserError, shorten_error, suggest_names
from adept_ray.config.places import drop_queries, refuse_secret, split_query, suggest_weight
from adept_ray.data.hub_client import PASSING_STATUS, PATIENCE, Fault, read_wait, use_patient_client
from adept_ray.data.hub_faults import explain_hub_error, is_of_the_hub, list_causes

T = TypeVar("T")

HUB = "hf://"
WEB = ("http://", "https://")
BY_PYARROW = ("s3", "gs", "gcs", "hdfs", "viewfs")  # its own drivers need no other package
BY_HOST = ("hdfs", "viewfs")  # of these, whose URIs begin with a host and not with a bucket
GOOGLE_PATIENCE_S = 30  # its driver would ask for a quarter of an hour
GLOB = re.compile(r"[*?[]")
# What file systems call a mark that changes with a file's content, the surest first.
MARKS = (
    "ETag",
    "etag",
    "blob_id",
    "Content-MD5",
    "Digest",
    "mtime",
    "LastModified",
    "Last-Modified",
    "modified",
)
DENIED = re.compile(
    r"ACCESS_DENIED|ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|TOKEN|AccessDenied|Forbidden|Unauthorized|"
    r"PERMISSION_DENIED|UNAUTHENTICATED|HTTP status (401|403)|Anonymous caller|credentials",
)
MISSING = re.compile(r"NO_SUCH_BUCKET|NO_SUCH_KEY|NoSuchBucket|bucket does not exist|Not found")
# What drivers of the web call an answer that didn't come or broke off; a refused connection is none of them.
PASSING_FAULTS = frozenset(
    {
        "TimeoutError",
        "FSTimeoutError",
        "ServerDisconnectedError",
        "ClientPayloadError",
        "ConnectionResetError",
    }
)
PACKAGES = {"smbclient": "smbprotocol", "git": "gitpython"}  # module → package, where they differ


@dataclass(frozen=True)
class FoundFile:
    """A file behind a URI."""

    place: str
    size: int | None
    """Bytes, where it is said."""
    mark: str
    """Another one once its content has changed."""


@dataclass(frozen=True)
class Uri:
    """The parts of a URI, ``scheme://user@host/path?query``."""

    scheme: str
    user: str
    """With its ``@``; empty if there is none."""
    host: str
    """Or the bucket."""
    path: str
    """Behind the host, with its slash."""
    query: str

    @property
    def root(self) -> str:
        """What pyarrow opens the file system by."""
        return f"{self.scheme}://{self.user}{self.host or '/'}"

    @property
    def path_on_filesystem(self) -> str:
        """How pyarrow's file system names it: a bucket is a part of its paths, a host isn't."""
        return self.path or "/" if self.scheme in BY_HOST else self.host + self.path

    def name_file(self, path: str) -> str:
        """The URI of a path on that file system."""
        inside = f"{self.host}/{path.lstrip('/')}" if self.scheme in BY_HOST else path
        return f"{self.scheme}://{self.user}{inside}{f'?{self.query}' if self.query else ''}"


def parse_uri(place: str) -> Uri:
    """The parts of a URI."""
    plain, query = split_query(place)
    scheme, _, rest = plain.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    return Uri(scheme, user + at, host, slash + path, query)


def open_filesystem(place: str) -> tuple[Any, str]:
    """fsspec's file system and the path on it of a URI.

    Raises :class:`UserError` for a scheme that nobody knows, or whose driver isn't installed.
    """
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper
    from fsspec.registry import known_implementations
    from pyarrow import fs

    uri, plain = parse_uri(place), split_query(place)[0]
    scheme = uri.scheme
    if place.startswith(HUB):
        from huggingface_hub import HfFileSystem, constants

        use_patient_client()
        return HfFileSystem(endpoint=constants.ENDPOINT), place
    if scheme in BY_PYARROW:
        query = uri.query
        if scheme in ("gs", "gcs") and "retry_limit_seconds" not in query:
            query = f"{query}&retry_limit_seconds={GOOGLE_PATIENCE_S}".lstrip("&")
        filesystem, _ = fs.FileSystem.from_uri(f"{uri.root}?{query}" if query else uri.root)
        return ArrowFSWrapper(filesystem), uri.path_on_filesystem
    try:
        filesystem = fsspec.filesystem(scheme)
    except ImportError as problem:
        module = (getattr(problem.__cause__, "name", None) or scheme).partition(".")[0]
        package = PACKAGES.get(module, module)
        raise UserError(
            f"{plain}: {scheme}:// is reached by the package '{package}', which isn't installed here: "
            f"pip install {package}"
        ) from None
    except ValueError:
        known = suggest_names(scheme, {*known_implementations, "s3", "gs"})
        raise UserError(f"{plain}: nothing is known of {scheme}://; {known}") from None
    return filesystem, place


def list_files(place: str) -> list[FoundFile]:
    """The file behind a URI, those of a folder, or those that a glob names; sorted.

    Raises :class:`UserError` for what isn't there or may not be read.
    """
    try:
        refuse_secret(place)
    except ValueError as problem:
        raise UserError(str(problem)) from None
    uri = parse_uri(place)
    with explain_uri_errors(place):
        filesystem, path = open_filesystem(place)
        filesystem.invalidate_cache()
        web = place.startswith(WEB)

        def describe(name: str) -> dict[str, Any]:
            return ask_patiently(place, lambda: cast(dict[str, Any], filesystem.info(name)))

        if GLOB.search(split_query(path)[0]):
            found = ask_patiently(place, lambda: filesystem.glob(path, detail=True))
        elif (about := describe(path))["type"] == "file" and not (web and path.endswith("/")):
            found = {path: about}
        else:
            found = ask_patiently(place, lambda: filesystem.find(path, detail=True))
        files = [(name, about) for name, about in sorted(found.items()) if about["type"] == "file"]
        if web:  # a page's links say nothing of what is behind them
            files = [(name, describe(name)) for name, _ in files]
    if not files:
        plain = split_query(place)[0]
        raise UserError(f"{plain}: there is no such file, or no file in it{suggest_weight(plain)}")
    return [
        FoundFile(name if "://" in name else uri.name_file(name), about.get("size"), find_mark(about))
        for name, about in files
    ]


def find_mark(about: dict[str, object]) -> str:
    """What says of a file's description that it is still the same one."""
    return next((str(about[name]) for name in MARKS if about.get(name)), "")


def name_version(place: str, files: list[FoundFile]) -> str:
    """The version of all files of a place: another one once one of them has changed, gone or come."""
    plain = split_query(place)[0]
    rows = [(split_query(file.place)[0].removeprefix(plain), file.size, file.mark) for file in files]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:40]


def open_uri(place: str) -> tuple[Callable[[int, int], bytes], int]:
    """What reads a range of bytes of a file behind a URI, from a first to before a last one; and its size.

    A file whose server gives no ranges is fetched whole. Raises :class:`UserError`, and of the hub what its
    client raises.
    """

    def open_file() -> tuple[BinaryIO, int]:
        filesystem, path = open_filesystem(place)
        file = filesystem.open(
            path, "rb", **({} if parse_uri(place).scheme in BY_PYARROW else {"cache_type": "none"})
        )
        size = getattr(file, "size", None)
        if callable(size):
            size = size()
        if size is None or not file.seekable():
            whole = file.read()
            return io.BytesIO(whole), len(whole)
        return file, size

    with explain_uri_errors(place):
        file, size = ask_patiently(place, open_file)

    def read(start: int, end: int) -> bytes:
        def read_range() -> bytes:
            file.seek(start)
            return file.read(end - start)

        with explain_uri_errors(place):
            return ask_patiently(place, read_range)

    return read, size


def ask_patiently(place: str, ask: Callable[[], T]) -> T:
    """What `ask` returns; of the web it is asked again while faults pass, as the hub is."""
    return PATIENCE.keep_trying(ask, place, find_passing_fault) if place.startswith(WEB) else ask()


def find_passing_fault(problem: Exception) -> Fault | None:
    """What passes of what the web's driver raises; None where it doesn't."""
    for each in list_causes(problem):
        if (status := getattr(each, "status", 0)) in PASSING_STATUS:
            return Fault(f"answers {status}", read_wait(getattr(each, "headers", None) or {}))
        if PASSING_FAULTS & {kind.__name__ for kind in type(each).__mro__}:
            return Fault(type(each).__name__)
    return None


@contextmanager
def explain_uri_errors(place: str) -> Iterator[None]:
    """One sentence for what a file system refuses; what the hub refuses is explained elsewhere."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # whatever a dozen drivers raise
        if place.startswith(HUB) and is_of_the_hub(problem):
            raise
        raise UserError(explain_uri_error(place, problem)) from problem


@contextmanager
def explain_remote_errors(place: str) -> Iterator[None]:
    """One sentence for what is left: what the hub refuses, and what readers stumble over."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # whatever a dozen drivers and readers raise on someone else's data
        raise UserError(explain_uri_error(place, problem)) from problem


def explain_uri_error(place: str, problem: Exception) -> str:
    """Why what lies behind a URI can't be read, and what mends it."""
    if place.startswith(HUB) and is_of_the_hub(problem):
        return explain_hub_error(place.removeprefix(HUB), problem, "dataset")
    fault = find_passing_fault(problem) if place.startswith(WEB) else None
    why, place = drop_queries(shorten_error(problem)), split_query(place)[0]
    if fault:
        return (
            f"{place}: can't be reached ({fault.what}; it was asked for minutes): run the command again later"
        )
    causes = list(list_causes(problem))
    status = next((each.status for each in causes if hasattr(each, "status")), 0)
    # What fsspec calls missing on the web may be a server that doesn't answer.
    silent = any(isinstance(each, OSError) and not isinstance(each, FileNotFoundError) for each in causes[1:])
    if isinstance(problem, PermissionError) or status in (401, 403) or DENIED.search(str(problem)):
        return (
            f"{place}: whoever runs this may not read it ({why}): ask for the right to list and read it, or "
            "set credentials that have it, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if (
        (isinstance(problem, FileNotFoundError) and not silent)
        or status in (404, 410)
        or MISSING.search(str(problem))
    ):
        return f"{place}: there is no such file or folder{suggest_weight(place)}"
    return f"{place}: can't be reached: {why}"
