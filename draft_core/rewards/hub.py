"""Loading from the Hugging Face Hub where there is no network: what the cache has, or one reason, and no retries."""

from __future__ import annotations

import functools
import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

SECONDS = 5  # that the hub has to answer in


@contextmanager
def hub_or_cache(location: str | None = None) -> Iterator[None]:
    """Inside, libraries that load from the hub look only into its cache if the hub cannot be reached from here.

    Without this each of them asks for every file six times, and says so, for minutes.

    Arguments:
        location: all that is loaded inside, if it may be a local path: then nobody asks whether the hub is there.

    Raises:
        OSError: with one reason, instead of what a library raises for want of the hub.
    """
    if location is not None and os.path.exists(location):
        yield
        return
    reason = None if constants.HF_HUB_OFFLINE else unreachable()
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        yield
    except Exception as error:  # each library wraps it in a class of its own
        if not _is_for_want_of_the_hub(error):
            raise
        why = "HF_HUB_OFFLINE is set" if before else f"{constants.ENDPOINT} cannot be reached"
        raise OSError(
            f"{why}{f' ({reason})' if reason else ''}, and it is not in the cache of earlier downloads"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def require_hub() -> None:
    """Inside `hub_or_cache`: that the hub was asked, for libraries that say nothing where they find no file.

    Raises:
        OfflineModeIsEnabled: if it was not.
    """
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("the hub was not asked")


@functools.cache
def unreachable() -> str | None:
    """Why no connection to the hub can be made, found out once; None if one can, or a proxy stands between."""
    if urllib.request.getproxies().keys() & {"https", "all"}:
        return None
    place = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _is_for_want_of_the_hub(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
            return True
        error = error.__cause__ or error.__context__
    return False
