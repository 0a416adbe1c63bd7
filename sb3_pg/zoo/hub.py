"""Patches of ``huggingface_sb3``, listed in :mod:`sb3_pg.zoo.patches`."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from sb3_pg.registry import ALGOS


def patch_client() -> None:
    """Provide what the zoo's ``push_to_hub`` and ``load_from_hub`` expect of the package. Idempotent."""
    client: Any = importlib.import_module("huggingface_sb3")
    push_to_hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(push_to_hub, "generate_metadata") and hasattr(push_to_hub, "_generate_metadata"):
        push_to_hub.generate_metadata = push_to_hub._generate_metadata
    if not hasattr(client.load_from_hub, "patched_by_sb3_pg"):
        client.load_from_hub = _with_expected_error(client.load_from_hub)


def _with_expected_error(original: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(original)
    def load_from_hub(repo_id: str, filename: str) -> str:
        from huggingface_hub.errors import EntryNotFoundError
        from requests.exceptions import HTTPError

        try:
            return original(repo_id, filename)
        except EntryNotFoundError as error:
            name = repo_id.partition("/")[2]
            if isinstance(error, HTTPError) or not any(name.startswith(f"{key}-") for key in ALGOS):
                raise
            raise HTTPError(str(error)) from error

    marked: Any = load_from_hub
    marked.patched_by_sb3_pg = True
    return load_from_hub
