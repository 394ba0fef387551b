"""A model's folder on the Hugging Face hub, from where `WorldModel.from_pretrained("owner/name")` takes it."""

from __future__ import annotations

import os

from kairos_env.world_model.checkpoint import CONFIG, resolve

_KEPT = ["*.safetensors", "*.json", "*.jsonl", "README.md"]  # what belongs to a model


def push_to_hub(model: str | os.PathLike[str], name: str, private: bool = False, revision: str | None = None) -> str:
    """Uploads a model's folder with its card; what was there under the same names is replaced in one commit.

    Args:
        model: bundled name or folder.
        name: ``owner/name`` of the repository, which is made if it is not there.
        private: of a new repository.
        revision: branch; None is the main one.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: no such model.
        ValueError: another form of name.
        OSError: the hub refused; `hf auth login` gives this machine a token.
    """
    from huggingface_hub import HfApi

    folder = resolve(model)
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"{name!r} is no name on the hub; it looks like owner/name")
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"{folder} is no model: it has no {CONFIG}")
    hub = HfApi()
    hub.create_repo(name, private=private, exist_ok=True)
    done = hub.upload_folder(
        repo_id=name, folder_path=folder, allow_patterns=_KEPT, revision=revision, commit_message=f"Kairos model {name}"
    )
    return str(getattr(done, "commit_url", done))
