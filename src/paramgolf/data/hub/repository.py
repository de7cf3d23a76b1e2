"""One commit of a data set repository on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from paramgolf.errors import ConfigError, UserError
from paramgolf.version import __version__

_TIMEOUT = 30.0
"""Seconds to wait for the list of files."""


class Unreachable(UserError):
    """The hub could not be asked: no network, no library, or an answer that is not the hub's."""


class RemoteFile(NamedTuple):
    """A file as the hub lists it."""

    path: str
    """In the repository."""
    size: int
    sha256: str
    """Empty for a small file, which git itself stores."""
    blob_id: str
    """ID of the git object: for a small file, a SHA-1 of its size and content."""


class Repository:
    """One commit of a data set repository, read with `huggingface_hub`.

    Attributes:
        name: OWNER/NAME.
        revision: the hash of the commit.
        endpoint: address of the hub.
        files: all files of the commit, by path.
    """

    def __init__(self, name: str, revision: str, endpoint: str | None = None) -> None:
        """Look up the commit of a revision and list its files.

        Args:
            name: OWNER/NAME.
            revision: a branch, tag or commit.
            endpoint: address of the hub; None: HF_ENDPOINT, or https://huggingface.co.

        Raises:
            ConfigError: if `name` is not of the form OWNER/NAME.
            UserError: if huggingface_hub is not installed, the hub cannot be reached, or it has no
                such repository or revision.
        """
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise ConfigError(f"invalid --repo {name!r}: expected OWNER/NAME")
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise Unreachable(
                f"fetching needs huggingface_hub ({error}): pip install 'paramgolf[hub]'"
            ) from error
        self._api = HfApi(endpoint, library_name="paramgolf", library_version=__version__)
        self.name, self.revision, self.endpoint = name, revision, self._api.endpoint
        with self._explained("the list of files"):
            info = self._api.dataset_info(
                name, revision=revision, timeout=_TIMEOUT, files_metadata=True
            )
        self.revision = info.sha or revision
        self.files = {
            file.rfilename: RemoteFile(
                file.rfilename, file.size, file.lfs.sha256 if file.lfs else "", file.blob_id or ""
            )
            for file in info.siblings or ()
            if file.size is not None
        }

    def __str__(self) -> str:
        return f"{self.name} at {self.revision[:12]}"

    def download(self, path: str, folder: Path) -> Path:
        """Download a file to its path below `folder`; return that path.

        A connection that drops is resumed. The library compares the size, not the content.

        Raises:
            UserError: if the file does not exist or does not arrive.
            OSError: if it cannot be written.
        """
        with self._explained(path):
            return Path(
                self._api.hf_hub_download(
                    self.name,
                    path,
                    repo_type="dataset",
                    revision=self.revision,
                    local_dir=folder,
                )
            )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the library's errors about `what` into one line that says what to do."""
        from huggingface_hub import errors

        try:
            yield
        except (
            errors.HTTPError,
            errors.EntryNotFoundError,
            errors.FileMetadataError,
            ConnectionError,
            RuntimeError,  # of hf_xet
        ) as error:
            raise self._explained_error(what, error) from error
        except OSError as error:
            if error.errno is not None:  # the disk, not the hub
                raise
            raise Unreachable(
                f"{what} of {self} did not arrive intact ({_one_line(error)}); try again"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(
                f"{self.endpoint} does not answer like the Hugging Face hub ({what} of {self}: "
                f"{type(error).__name__}); check HF_ENDPOINT and any proxy"
            ) from error

    def _explained_error(self, what: str, error: BaseException) -> UserError:
        from huggingface_hub import errors

        if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # the file is not in the library's cache either
        match error:
            case errors.OfflineModeIsEnabled():
                return Unreachable(f"HF_HUB_OFFLINE is set; unset it to fetch {self.name}")
            case errors.RevisionNotFoundError():
                return UserError(
                    f"{self.name} has no revision {self.revision!r}; name another --revision"
                )
            case errors.RepositoryNotFoundError():  # or a gated one
                return self._no_access("it does not exist, or is private or gated")
            case errors.EntryNotFoundError():
                return UserError(f"{self} has no {what}; name another --revision or --repo")
            case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
                return self._no_access(f"the hub refuses {what}")
            case errors.HfHubHTTPError():
                reason = f"the hub answered {error.response.status_code}"
            case _:
                reason = _one_line(error)
        return Unreachable(
            f"cannot fetch {what} of {self} from {self.endpoint} ({reason}); check the network, "
            "then try again: complete files are kept"
        )

    def _no_access(self, reason: str) -> UserError:
        page = f"{self.endpoint}/datasets/{self.name}"
        return UserError(
            f"cannot read the data set repository {self.name} ({reason}); check --repo, accept its "
            f"terms at {page}, or set HF_TOKEN to a token that may read it"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
