"""DeepMask: from a window of an image to a coarse mask and a score.

Both the feed-forward network of SharpMask (section 4), W160-P4-D39-F128 with head C, and the original of 2015.
Images are RGB in [0, 1]; the model normalises them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels import Windows, gather_windows
from sharpmask_kernels.windows import STRIDE

from .config import ModelConfig, SearchConfig
from .heads import MaskHead, ScoreHead
from .inference import Heads, InferenceForm, PlainHeads, inference_trunk, is_plain, recompute_weights
from .trunk import Trunk

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DenseMaps(NamedTuple):
    """The maps of an image at one scale, which its windows share."""

    taps: list[Tensor]
    """Trunk maps at strides 16, 8, 4, 2."""
    code: Tensor
    """(B, code, rows, cols): the code of every window."""
    score: Tensor
    """(B, 1, rows, cols): the objectness logit of every window."""


class DeepMask(nn.Module):
    """Trunk, window code, coarse mask, score.

    ``window`` S: side in pixels, a multiple of 16. ``context``: pixels of image seen around a training patch,
    half on each side, a multiple of 32. ``features``: width of the 1x1 convolution before the code. ``code``: length
    of the code. ``mask_side``: side of the coarse mask. ``score_hidden``: hidden units of the score head. Raises
    ``ValueError`` for a window or a context that is no such multiple.
    """

    mean: Tensor
    std: Tensor
    config: ModelConfig
    """The configuration that this model was built from."""
    search: SearchConfig
    """How its windows are searched over full images."""
    _inference: tuple[list[Any], InferenceForm] | None = None
    """What ``for_inference`` gave last, and the state of the tensors that it was made of."""

    def __init__(
        self,
        trunk: Trunk,
        *,
        window: int = 160,
        context: int = 32,
        features: int = 128,
        code: int = 512,
        mask_side: int = 56,
        score_hidden: int = 1024,
    ) -> None:
        super().__init__()
        if window % STRIDE or window < STRIDE:
            raise ValueError(f"window must be a positive multiple of {STRIDE}, got {window}")
        if context % (2 * STRIDE) or context < 0:
            raise ValueError(f"context must be a multiple of {2 * STRIDE} and at least 0, got {context}")
        self.window, self.context, self.cells = window, context, window // STRIDE
        self.trunk = trunk
        self.reduce = nn.Conv2d(trunk.channels[0], features, 1)
        self.encode = nn.Linear(features * self.cells**2, code)
        self.mask = MaskHead(code, mask_side)
        self.score = ScoreHead(code, score_hidden)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def taps(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W) in [0, 1] -> trunk maps at strides 16, 8, 4, 2."""
        return self.trunk((image - self.mean) / self.std)

    def dense(self, image: Tensor) -> DenseMaps:
        """The maps of padded images (B, 3, h + S, w + S), by the heads in their convolutional form."""
        taps = self.taps(image)
        return DenseMaps(taps, *self.dense_heads(taps))

    def dense_heads(self, taps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Codes and scores of ``dense``, of trunk maps."""
        kernel = self.encode.weight.unflatten(1, (-1, self.cells, self.cells))
        code = F.conv2d(F.relu(self.reduce(taps[0])), kernel, self.encode.bias)
        return code, self.score(code.movedim(1, -1))[:, None]

    def __getstate__(self) -> dict[str, Any]:
        # The form for inference is made of functions, which pickle refuses, and of tensors twice.
        return {**self.__dict__, "_inference": None}

    def for_inference(self) -> InferenceForm:
        """The form in which full images are searched, made anew when a child, parameter, buffer or hook has changed."""
        recompute_weights(self)
        state = [*self.parameters(), *self.buffers()]
        # Changes by x.data, by NumPy and of tensors made in inference mode are not counted, but show in the sums.
        # As bits, of which those of NaN equal themselves.
        sums = torch.stack([x.detach().sum(dtype=torch.float32) for x in state]).view(torch.int32).tolist()
        versions = [0 if x.is_inference() else x._version for x in state]
        calls = [(id(module), is_plain(module)) for module in self.children()]
        key = [calls, sums, versions, [(x.data_ptr(), x.dtype, x.device) for x in state]]
        if self._inference is None or self._inference[0] != key:
            with torch.no_grad():
                self._inference = key, self._inference_form()
        return self._inference[1]

    def for_export(self) -> InferenceForm:
        """That form, made anew, of public operations of PyTorch alone, for sizes of all kinds."""
        recompute_weights(self)
        with torch.no_grad():
            return self._inference_form(public=True)

    def _inference_form(self, *, public: bool = False) -> InferenceForm:
        trunk = inference_trunk(self.trunk, self.mean, self.std, public=public)
        heads: Heads | PlainHeads = PlainHeads(self.dense_heads)
        if all(map(is_plain, (self.reduce, self.encode, self.score))):
            heads = Heads(self.reduce, self.encode, self.score, self.cells, public=public)
        return InferenceForm(trunk, self.window // 2, heads)

    def window_codes(self, taps: list[Tensor], windows: Windows) -> Tensor:
        """Codes (N, code) of some windows only, equal to those of ``dense`` at their grid cells; for training."""
        features = F.relu(self.reduce(taps[0]))
        return self.encode(gather_windows(features, windows, self.cells).flatten(1))

    def patch_codes(self, taps: list[Tensor]) -> Tensor:
        """Codes (B, code) of patches of S + context pixels, whose windows lie in the middle."""
        return self.encode(F.relu(self.reduce(self.crop(taps[0], 0))).flatten(1))

    def score_patch(self, taps: list[Tensor]) -> Tensor:
        """Score logits (B) of patches, given their trunk maps."""
        return self.score(self.patch_codes(taps))

    def crop(self, x: Tensor, stage: int) -> Tensor:
        """The window's cells of a patch's map at ``stage`` (stride 16 / 2^stage)."""
        border = self.context // (2 * STRIDE) << stage
        side = self.cells << stage
        return x[:, :, border : border + side, border : border + side]

    def check_patch(self, patch: Tensor) -> None:
        """Raise ``ValueError`` unless ``patch`` is (B, 3, S + context, S + context) of floats."""
        side = self.window + self.context
        if patch.ndim != 4 or patch.shape[1:] != (3, side, side):
            raise ValueError(
                f"patch must be (B, 3, {side}, {side}), the window of {self.window} pixels with {self.context} of "
                f"context around it, got {tuple(patch.shape)}; ProposalGenerator takes whole photos"
            )
        if not patch.is_floating_point():
            raise ValueError(f"patch must be floats in [0, 1], got {patch.dtype}; patch / 255 converts bytes")

    def coarse(self, code: Tensor) -> Tensor:
        """Coarse mask logits (N, side, side) of codes (N, code)."""
        return self.mask(code)

    def forward(self, patch: Tensor) -> tuple[Tensor, Tensor]:
        """patch (B, 3, S + context, S + context) -> mask logits (B, side, side), score logits (B)."""
        self.check_patch(patch)
        code = self.patch_codes(self.taps(patch))
        return self.coarse(code), self.score(code)


class OriginalDeepMask(DeepMask):
    """DeepMask of 2015: VGG-A, 224-pixel windows, separate mask and score branches, about 75M parameters.

    Its ``code`` is the 512-vector of the mask branch. The score branch pools by two. To keep stride 16, its
    convolutional form pools with stride 1, and the layer after it is dilated, so that it reads every other cell.
    """

    def __init__(self, trunk: Trunk, *, window: int = 224, context: int = 0, mask_side: int = 56) -> None:
        super().__init__(trunk, window=window, context=context, features=512, mask_side=mask_side)
        width = trunk.channels[0]
        self.pooled = self.cells // 2
        self.score = nn.Sequential(  # type: ignore[assignment]
            nn.Linear(width * self.pooled**2, 512),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(512, 1024),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(1024, 1),
        )

    def dense_heads(self, taps: list[Tensor]) -> tuple[Tensor, Tensor]:
        kernel = self.encode.weight.unflatten(1, (-1, self.cells, self.cells))
        code = F.conv2d(F.relu(self.reduce(taps[0])), kernel, self.encode.bias)
        first, *rest = self.score
        assert isinstance(first, nn.Linear)
        kernel = first.weight.unflatten(1, (-1, self.pooled, self.pooled))
        hidden = F.conv2d(F.max_pool2d(taps[0], 2, stride=1), kernel, first.bias, dilation=2)
        score = nn.Sequential(*rest)(hidden.movedim(1, -1)).movedim(-1, 1)
        # The score branch ignores the last cell of a window with an odd number of cells, so its map may be larger.
        return code, score[:, :, : code.shape[2], : code.shape[3]]

    def _inference_form(self, *, public: bool = False) -> InferenceForm:
        trunk = inference_trunk(self.trunk, self.mean, self.std, public=public)
        return InferenceForm(trunk, self.window // 2, PlainHeads(self.dense_heads))

    def forward(self, patch: Tensor) -> tuple[Tensor, Tensor]:
        self.check_patch(patch)
        taps = self.taps(patch)
        return self.coarse(self.patch_codes(taps)), self.score_patch(taps)

    def score_patch(self, taps: list[Tensor]) -> Tensor:
        return self.score(F.max_pool2d(self.crop(taps[0], 0), 2).flatten(1)).flatten()
