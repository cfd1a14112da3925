"""How models are read and written by huggingface_hub's mixin, which must be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from huggingface_hub import ModelHubMixin, hf_hub_download

from .checkpoint import load_model, save_model
from .models import DeepMask
from .plain import to_plain

FILE: Final = "model.safetensors"
CARD: Final = """---
{{ card_data }}
---

A model of the Python package sharpmask, which finds the objects in a photo and draws a mask around each, without naming
them.

```python
from sharpmask import ProposalGenerator, from_pretrained

model = from_pretrained("{{ repo_id | default("FOLDER", true) }}")
found = ProposalGenerator(model).generate("photo.jpg")
```
"""


class Shared(  # type: ignore[call-arg]
    ModelHubMixin,
    library_name="sharpmask",
    pipeline_tag="mask-generation",
    tags=["object-proposals"],
    model_card_template=CARD,
):
    """A model with the methods of the mixin."""

    def __init__(self, model: DeepMask) -> None:
        self.model = model
        self._hub_mixin_config = {"model": to_plain(model.config), "search": to_plain(model.search)}

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self.model, save_directory / FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Shared:
        if Path(model_id).is_dir():
            return cls(load_model(Path(model_id) / FILE))
        return cls(load_model(hf_hub_download(model_id, FILE, **options)))
