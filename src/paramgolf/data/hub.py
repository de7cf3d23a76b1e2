"""A data set repository of the Hugging Face hub, read over plain HTTP."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.version import __version__

T = TypeVar("T")

WAITS = (1.0, 3.0, 9.0, 27.0)
"""Seconds before each further attempt when not one byte came; after the last, an error."""
TIMEOUT = 30.0
"""Seconds of silence after which a connection counts as dropped."""
GOES_ON = "then try again: it goes on where it stopped"

_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)


class HubFile(NamedTuple):
    """A file as the hub describes it."""

    path: str
    """In the repository."""
    size: int
    sha256: str
    """Empty for a file that git holds itself."""
    blob: str
    """The id of its git object, a SHA-1 of the content if git holds it itself."""


class Hub:
    """One commit of a data set repository.

    Of huggingface_hub this uses the session, the addresses, the credentials and the errors. Its
    own download forgets what a process that was killed had received, and cannot be watched.
    """

    def __init__(self, repo: str, revision: str, reporter: Reporter) -> None:
        """Ask the hub for the commit of a revision and its files.

        Raises:
            ConfigError: if `repo` or HF_ENDPOINT is no name or address.
            UserError: without huggingface_hub, the hub, the repository or the revision.
        """
        try:
            import huggingface_hub
            from huggingface_hub import errors, utils
        except ImportError as error:
            raise UserError(
                f"fetching needs huggingface_hub ({error}): pip install 'paramgolf[hub]'"
            ) from error
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"HF_ENDPOINT is {self.endpoint!r}: must be http://... or https://..."
            )
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise ConfigError(f"--repo {repo!r}: must be OWNER/NAME")
        self.repo, self.revision = repo, revision
        self._reporter, self._errors, self._utils = reporter, errors, utils
        self._session, self._url = huggingface_hub.get_session, huggingface_hub.hf_hub_url
        headers = utils.build_hf_headers(library_name="paramgolf", library_version=__version__)
        # A part of an answer that came compressed could not be gone on with.
        self._headers = {**headers, "Accept-Encoding": "identity"}
        api = huggingface_hub.HfApi(endpoint=self.endpoint)
        info = self._persist(
            "list of files",
            lambda: api.dataset_info(repo, revision=revision, timeout=TIMEOUT, files_metadata=True),
        )
        if not info.sha or info.siblings is None:
            raise UserError(f"{self.endpoint} lists no files of {repo}; check HF_ENDPOINT")
        self.revision = info.sha
        self.files = {
            file.rfilename: HubFile(
                file.rfilename, file.size, file.lfs.sha256 if file.lfs else "", file.blob_id or ""
            )
            for file in info.siblings
            if file.size is not None
        }

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision[:12]}"

    def read(self, path: str) -> bytes:
        """The content of a small file.

        Raises:
            UserError: if it is not there or does not come.
        """

        def read() -> bytes:
            response = self._session().get(self._at(path), headers=self._headers, timeout=TIMEOUT)
            self._utils.hf_raise_for_status(response)
            return response.content

        return self._persist(path, read)

    def receive(self, file: HubFile, part: Path, report: Callable[[int], None]) -> None:
        """Append what is missing of a file to `part`; whether it is right remains to be checked.

        Args:
            file: the file.
            part: what there is of it; it stays if the rest does not come.
            report: called with the number of bytes received.

        Raises:
            UserError: if the file is not there, or the connection drops again and again.
        """

        def receive() -> None:
            if (start := size_of(part)) >= file.size:
                return
            headers = {**self._headers, "Range": f"bytes={start}-"} if start else self._headers
            address = self._at(file.path)
            with self._session().stream("GET", address, headers=headers, timeout=TIMEOUT) as answer:
                if answer.status_code == 416:  # what the hub has ends here
                    return
                self._utils.hf_raise_for_status(answer)
                with part.open("ab") as stored:
                    if answer.status_code != 206:  # the whole, though only the rest was asked for
                        stored.truncate(0)
                    # In pieces as they come: of pieces of a fixed size the last would be lost.
                    for chunk in answer.iter_bytes():
                        stored.write(chunk)
                        stored.flush()  # outlives this process
                        report(len(chunk))
                        if stored.tell() > file.size:
                            return
                    os.fsync(stored.fileno())

        self._persist(file.path, receive, lambda: size_of(part))

    def _at(self, path: str) -> str:
        return self._url(
            self.repo, path, repo_type="dataset", revision=self.revision, endpoint=self.endpoint
        )

    def _persist(self, what: str, ask: Callable[[], T], progress: Callable[[], int] = int) -> T:
        """What `ask` returns once it does not fail; it may fail for long if `progress` grows."""
        failures = 0
        while True:
            before = progress()
            try:
                return ask()
            except self._errors.OfflineModeIsEnabled as error:
                raise UserError(f"HF_HUB_OFFLINE is set; unset it to fetch {self.repo}") from error
            except self._errors.HTTPError as error:
                reason = self._passing_reason(what, error)
                failures = 1 if progress() > before else failures + 1
                if failures > len(WAITS):
                    raise UserError(
                        f"cannot fetch {what} of {self} from {self.endpoint} ({reason}); check the "
                        f"network, {GOES_ON}"
                    ) from error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{self.endpoint} does not answer as the hub does ({what} of {self}: "
                    f"{type(error).__name__}); check HF_ENDPOINT and any proxy"
                ) from error
            wait = WAITS[failures - 1]
            self._reporter.line(f"  {what}: {reason}; trying again in {wait:.0f} s")
            time.sleep(wait)

    def _passing_reason(self, what: str, error: Any) -> str:
        """Why a request failed that may work later.

        Raises:
            UserError: if it will not.
        """
        errors = self._errors
        if not isinstance(error, errors.HfHubHTTPError):
            return " ".join(str(error).split())[:200] or type(error).__name__
        status = error.response.status_code
        if status in _PASSING_STATUS:
            return f"the hub answered {status}"
        if isinstance(error, errors.GatedRepoError):
            page = f"{self.endpoint}/datasets/{self.repo}"
            message = f"{self.repo} is gated: accept its terms at {page} and set HF_TOKEN"
        elif isinstance(error, errors.RevisionNotFoundError):
            message = f"{self.repo} has no revision {self.revision!r}; name another with --revision"
        elif isinstance(error, errors.RepositoryNotFoundError):
            message = (
                f"{self.endpoint} has no data set repository {self.repo}, or it is private: check "
                "--repo, or set HF_TOKEN to a token that may read it"
            )
        elif status in (401, 403):
            message = (
                f"the hub refuses the {what} of {self} ({status}); set HF_TOKEN to a valid token "
                "that may read it"
            )
        elif status == 404:
            message = f"{self} has no {what}; name another --revision or --repo"
        else:
            message = f"the hub answered {status} for {what} of {self}; try again later"
        raise UserError(message) from error


def size_of(path: Path) -> int:
    """The size of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
