"""Models in folders and on the hub: the same model comes back, and what cannot be had is one line."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin
import pytest
import torch

import sharpmask
from sharpmask import packages
from sharpmask.errors import DataError
from sharpmask.models import SharpMask


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_folder_gives_the_model_back(tiny_sharpmask: SharpMask, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    sharpmask.save_pretrained(tiny_sharpmask, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    found = sharpmask.from_pretrained(folder)
    assert same(found, tiny_sharpmask) and found.search == tiny_sharpmask.search and not found.training
    assert json.loads((folder / "config.json").read_text())["model"]["window"] == 48
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: mask-generation" in card and "library_name: sharpmask" in card
    assert same(sharpmask.load_model(folder / "model.safetensors"), found), "it is a checkpoint as any other"
    (folder / "README.md").write_text("own")
    sharpmask.save_pretrained(tiny_sharpmask, folder)
    assert (folder / "README.md").read_text() == "own"


def test_an_upload_has_the_files(tiny_sharpmask: SharpMask, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, str] = {}

    class Api:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, repo_id: str, **_: Any) -> str:
            uploaded.update({path.name: repo_id for path in Path(folder_path).iterdir()})
            uploaded["card"] = (Path(folder_path) / "README.md").read_text()
            return "https://hub/user/tiny"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert sharpmask.push_to_hub(tiny_sharpmask, "user/tiny", private=True) == "https://hub/user/tiny"
    assert 'from_pretrained("user/tiny")' in uploaded.pop("card")
    assert uploaded == dict.fromkeys(["README.md", "config.json", "model.safetensors"], "user/tiny")


def test_what_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"model\.safetensors"):
        sharpmask.from_pretrained(tmp_path / "empty")
    for name in ("user/absent", "not a name", "a/b/c"):
        with pytest.raises(DataError) as caught:
            sharpmask.from_pretrained(name, local_files_only=True, cache_dir=tmp_path / "cache")
        assert str(caught.value).startswith(f"{name}: must be a folder of a model, or a model on the hub")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    with pytest.raises(
        DataError, match=r"the hub needs the package huggingface_hub, .* pip install 'sharpmask\[hub\]'"
    ):
        sharpmask.from_pretrained("user/absent")
