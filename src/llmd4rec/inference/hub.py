"""Exports on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from llmd4rec.errors import RunError
from llmd4rec.extras import explained
from llmd4rec.inference.head import HEAD


def locate_export(name: Path | str, revision: str | None = None) -> Path:
    """The folder of an export: `name` itself where it exists, otherwise a local copy of that repository of the hub.

    A copy in the local cache is used without asking the hub; a `revision` that is not there is fetched.

    Raises:
        RunError: there is no such folder, and the hub does not have or give it.
        MissingExtraError: the package huggingface_hub is not installed.
    """
    if Path(name).exists() or Path(name).is_absolute() or str(name).count("/") != 1:
        return Path(name)
    with explained():
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        from llmd4rec.io.download import offline, reachable  # loads Python's network modules: 80 ms

    try:
        folder = snapshot_download(str(name), revision=revision, local_files_only=True)
        if (Path(folder) / HEAD).is_file():
            return Path(folder)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError):
        pass
    if offline() or constants.HF_HUB_OFFLINE:
        why = "it is not in the local Hugging Face cache, and the network is forbidden"
    elif not reachable(constants.ENDPOINT):
        why = f"it is not in the local Hugging Face cache, and {constants.ENDPOINT} does not answer"
    else:
        try:
            return Path(snapshot_download(str(name), revision=revision, etag_timeout=5))
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            why = _first_line(error)
    raise RunError(
        f"there is no folder {name}, and the hub did not give it: {why}",
        "Check the name and the network, or copy the export folder here and give its path.",
    )


def push(folder: Path, name: str, *, private: bool, token: str | None) -> str:
    """Uploads an export folder as a model repository; returns its address.

    Raises:
        RunError: the hub does not answer or refuses.
        MissingExtraError: the package huggingface_hub is not installed.
    """
    with explained():
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        from llmd4rec.io.download import offline, reachable  # loads Python's network modules: 80 ms

    if offline() or constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise RunError(
            f"cannot upload to {name}: {constants.ENDPOINT} does not answer or the network is forbidden",
            "Check the network; the folder can also be uploaded by hand.",
        )
    api = HfApi(token=token)
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Export of llmd4rec")
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise RunError(
            f"the hub refused the upload to {name}: {_first_line(error)}", "Check the name and your access token."
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)
