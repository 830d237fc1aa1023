"""Why the Hugging Face hub gives no file of a repository, in a sentence with what mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from adept_ray.config.errors import shorten_error
from adept_ray.data.hub_client import PASSING_STATUS, is_passing

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

Kind = Literal["dataset", "model"]
BAD_TOKEN = "invalid credentials"
LOGIN = "`hf auth login`"
REACH = "let that machine reach it (HTTPS_PROXY, HF_ENDPOINT), or give a folder that every node has"


def format_page(repo: str, kind: Kind) -> str:
    """Where a repository is shown, and where access to it is asked for."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"


def list_causes(problem: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it, the latest first."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        problem = problem.__cause__ or problem.__context__


def find_refusal(problem: BaseException) -> HfHubHTTPError | None:
    """The answer of the hub that an exception comes from, if it comes from one."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((each for each in list_causes(problem) if isinstance(each, HfHubHTTPError)), None)


def explain_hub_error(repo: str, problem: BaseException, kind: Kind = "model") -> str:
    """Why the hub gives no files of a repository, and what mends it."""
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    causes = list(list_causes(problem))
    if refusal := find_refusal(problem):
        return explain_refusal(repo, refusal, kind)
    if any(isinstance(each, OfflineModeIsEnabled) for each in causes):
        return (
            f"not all of '{repo}' is in this machine's cache, and HF_HUB_OFFLINE keeps it from the Hugging "
            "Face hub: unset it once, or lay the files into HF_HOME"
        )
    if any(is_passing(each) or "Consistency check failed" in str(each) for each in causes):
        why = shorten_error(next(each for each in causes if isinstance(each, Exception)))
        return (
            f"what the Hugging Face hub sends of '{repo}' is cut off again and again ({why}): look at the "
            "network and its proxies, and run the command again; what has come is kept"
        )
    known = [
        each for each in causes if isinstance(each, Exception) and not isinstance(each, EntryNotFoundError)
    ]
    why = shorten_error(known[-1] if known else RuntimeError(str(problem)))
    return f"the Hugging Face hub can't be asked for '{repo}' ({why}): {REACH}"


def explain_refusal(repo: str, refusal: HfHubHTTPError, kind: Kind) -> str:
    """What an answer of the hub's that is an error means."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status, page = refusal.response.status_code, format_page(repo, kind)
    if status == 401 and BAD_TOKEN in str(refusal).lower():
        return (
            "the Hugging Face hub doesn't know the token of this machine (HF_TOKEN, or that of a login): "
            f"make one on {constants.ENDPOINT}/settings/tokens and give it to {LOGIN}, or set HF_TOKEN to it"
        )
    if isinstance(refusal, GatedRepoError) and status == 401:
        return (
            f"the Hugging Face hub gives '{repo}' only to who may read it, and no token came along: ask for "
            f"access on {page}, then run {LOGIN}, or set HF_TOKEN, where the command runs"
        )
    if isinstance(refusal, GatedRepoError) or status == 403:
        return (
            f"the Hugging Face hub knows the token, but its owner may not read '{repo}': ask for access on "
            f"{page}, or give {LOGIN} a token that has the right to read it"
        )
    if isinstance(refusal, RepositoryNotFoundError) or status in (401, 404):
        also = "" if get_token() else f", and run {LOGIN} if it is private"
        return (
            f"no {kind} on the Hugging Face hub is called '{repo}', or a file of it is gone: see {page}{also}"
        )
    asked = urlsplit(str(refusal.response.request.url)).netloc
    own = asked == urlsplit(constants.ENDPOINT).netloc
    who = "the Hugging Face hub" if own else f"{asked}, where the Hugging Face hub keeps its files,"
    again = "; it was asked for minutes" if status in PASSING_STATUS else ""
    return f"{who} answers {status} for '{repo}'{again}: run the command again later, what has come is kept"


def is_of_the_hub(problem: BaseException) -> bool:
    """Whether an exception comes from the hub, or from its being out of reach: not from what lies there."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    refusal = find_refusal(problem)
    out_of_reach = (LocalEntryNotFoundError, OfflineModeIsEnabled)
    return (refusal is not None and refusal.response.status_code != 404) or any(
        is_passing(each) or isinstance(each, out_of_reach) for each in list_causes(problem)
    )
