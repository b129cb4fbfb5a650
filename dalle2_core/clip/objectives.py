"""What a CLIP of one's own can be trained on besides the plain contrastive loss: the options of x-clip's CLIP.

Shapes: b batch, l text length, p patches, d width of the joint space, w width of the image tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.errors import ConfigError
from dalle2_core.keywords import chosen

_SIMCLR_TEMPERATURE = 0.1
_PROJECTION_WIDTH = 256


@dataclass(frozen=True, slots=True)
class ClipObjective:
    """The names are x-clip's; the defaults are plain CLIP.

    use_all_token_embeds: a text and an image are as alike as their tokens and patches are, each compared with the
    nearest of the other side. FILIP, Yao et al. 2111.07783, equations 4 and 5.
    decoupled_contrastive_learning: leave the right pair out of the loss's denominator. Yeh et al. 2110.06848, eq. 7.
    extra_latent_projection: projections of their own for finding texts, beside those for finding images. CLOOB, Fürst
    et al. 2110.11316.
    use_visual_ssl, visual_ssl_type: train the image tower on two views of each image besides, by "simclr" (Chen et al.
    2002.05709) or "simsiam" (Chen & He 2011.10566). image_ssl_loss_weight: of that loss.
    use_mlm: must stay False: a causal text tower has nothing to fill in a masked token from. text_ssl_loss_weight: of
    the loss that it would have.
    """

    use_all_token_embeds: bool = False
    decoupled_contrastive_learning: bool = False
    extra_latent_projection: bool = False
    use_visual_ssl: bool = False
    visual_ssl_type: Literal["simclr", "simsiam"] = "simsiam"
    image_ssl_loss_weight: float = 0.05
    use_mlm: bool = False
    text_ssl_loss_weight: float = 0.05

    def __post_init__(self) -> None:
        chosen(dict.fromkeys(("simclr", "simsiam")), self.visual_ssl_type, "visual_ssl_type")
        if self.use_mlm:
            raise ConfigError(
                "use_mlm needs a text tower that looks both ways; this one is causal, as OpenAI's. Drop it"
            )
        if self.image_ssl_loss_weight < 0:
            raise ConfigError(f"image_ssl_loss_weight is {self.image_ssl_loss_weight}; it must be 0 or more")


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of b pairs in the joint space, L2-normalised.

    text, image: [b, d]. tokens: [b, l, d] and mask [b, l] bool, True at real ones. patches: [b, p, d].
    """

    text: Tensor
    image: Tensor
    tokens: Tensor
    mask: Tensor
    patches: Tensor


def contrast(sides: Sides, back: Sides, scale: Tensor, objective: ClipObjective) -> Tensor:
    """The symmetric contrastive loss, a scalar. sides: for finding images by texts; back: for the other way.

    scale: what cosines are multiplied by.
    """
    if objective.use_all_token_embeds:
        forth_likeness, back_likeness = text_to_image(sides), image_to_text(back)
    else:
        forth_likeness, back_likeness = sides.text @ sides.image.T, back.image @ back.text.T
    decoupled = objective.decoupled_contrastive_learning
    both = (_cross_entropy(scale * likeness, decoupled) for likeness in (forth_likeness, back_likeness))
    return sum(both, torch.zeros((), device=scale.device)) / 2


def text_to_image(sides: Sides) -> Tensor:
    """[b texts, b images]: the mean over a text's tokens of each one's nearest patch."""
    nearest = _compared(sides).amax(dim=3)
    mask = sides.mask[:, None].to(nearest.dtype)
    return (nearest * mask).sum(dim=2) / mask.sum(dim=2)


def image_to_text(sides: Sides) -> Tensor:
    """[b images, b texts]: the mean over an image's patches of each one's nearest token."""
    hidden = ~sides.mask[:, None, :, None]
    nearest = _compared(sides).masked_fill(hidden, -torch.inf).amax(dim=2)
    return nearest.mean(dim=2).T


def _compared(sides: Sides) -> Tensor:
    """Cosines [b texts, b images, l, p]."""
    return torch.einsum("tld,ipd->tilp", sides.tokens, sides.patches)


def _cross_entropy(logits: Tensor, decoupled: bool) -> Tensor:
    """Of the right answers, which are on the diagonal."""
    right = logits.diagonal()
    # A batch of one has no wrong answers: its loss is 0, not minus infinity.
    if decoupled and len(logits) > 1:
        logits = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)
    return (logits.logsumexp(dim=1) - right).mean()


class VisualSsl(nn.Module):
    """Two views of each image, which the tower should find alike."""

    def __init__(self, width: int, kind: str) -> None:
        """width: of the tower's features [b, w]."""
        super().__init__()
        self.kind = kind
        self.project = _perceptron(width, _PROJECTION_WIDTH)
        self.predict = _perceptron(_PROJECTION_WIDTH, _PROJECTION_WIDTH) if kind == "simsiam" else nn.Identity()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """The loss, a scalar, of the features [b, w] of both views."""
        first, second = self.project(one), self.project(other)
        if self.kind == "simsiam":
            return -(_cosine(self.predict(first), second.detach()) + _cosine(self.predict(second), first.detach())) / 2
        both = F.normalize(torch.cat((first, second)), dim=-1)
        likeness = both @ both.T / _SIMCLR_TEMPERATURE
        # None is its own wrong answer; its right one is the other view of the same image.
        likeness.fill_diagonal_(-torch.inf)
        return F.cross_entropy(likeness, torch.arange(len(both), device=both.device).roll(len(one)))


def random_view(pixels: Tensor) -> Tensor:
    """Each image [b, 3, h, w] cropped, mirrored, and changed in brightness, by a draw of its own."""
    rows, _, height, width = pixels.shape
    device = pixels.device
    side = (0.3 + 0.7 * torch.rand(rows, device=device)).sqrt()  # of 30 to 100% of the area
    place = (torch.rand(rows, 2, device=device) * 2 - 1) * (1 - side)[:, None]
    mirrored = torch.where(torch.rand(rows, device=device) < 0.5, -1.0, 1.0)
    turn = torch.zeros(rows, 2, 3, device=device)
    turn[:, 0, 0], turn[:, 1, 1], turn[:, :, 2] = side * mirrored, side, place
    grid = F.affine_grid(turn, [rows, 3, height, width], align_corners=False)
    view = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return view * (0.6 + 0.8 * torch.rand(rows, 1, 1, 1, device=device))


def _perceptron(width: int, out: int) -> nn.Sequential:
    # Layer norm in place of the papers' batch norm: an image's features do not depend on the others of its batch.
    return nn.Sequential(nn.Linear(width, out), nn.LayerNorm(out), nn.ReLU(), nn.Linear(out, out))


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one, other, dim=-1).mean()
