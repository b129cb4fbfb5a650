"""An autoencoder with a codebook, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from dalle2_core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """DALLE2-pytorch's keywords with its defaults, and some of ours at the end.

    dim: channels at full resolution. image_size: pixels, height and width of what it is trained on. channels: of the
    images. layers: halvings of the size; layer_mults: multiples of dim after each, None for 1, 2, 4 ….
    num_resnet_blocks, use_attn: at the lowest resolution, or a tuple with one value for each layer.
    resnet_groups: of all group norms, the discriminator's too. first_conv_kernel_size: odd.
    attn_heads, attn_dim_head, attn_dropout: of self-attention.
    vq_codebook_dim, vq_codebook_size: width and number of codes; the width is the latents' number of channels.
    vq_decay: of the codes' moving average. vq_commitment_weight: weight of the commitment loss.
    vq_kmeans_init: begin with the k-means of the first batch, which passes unquantised. vq_use_cosine_sim: latents and
    codes have norm 1.
    l2_recon_loss: squared errors instead of absolute ones. use_vgg_and_gan: a discriminator (and the perceptual loss,
    where its weights are given). use_hinge_loss: of the discriminator; else the logistic one. discr_layers: its
    halvings.
    vae_type: "resnet".

    vq_revive_below: a code that is used for less than this share of an even use is put on a vector of the batch; 0 for
    never. apply_grad_penalty_every: steps between gradient penalties of the discriminator; 0 for none.
    discr_start_step: steps before the discriminator begins. flip_prob: of mirroring an image left to right in training.
    """

    dim: int
    image_size: int
    channels: int = 3
    layers: int = 4
    layer_mults: tuple[int, ...] | None = None
    num_resnet_blocks: int | tuple[int, ...] = 1
    resnet_groups: int = 16
    first_conv_kernel_size: int = 5
    use_attn: bool | tuple[bool, ...] = True
    attn_dim_head: int = 64
    attn_heads: int = 8
    attn_dropout: float = 0.0
    l2_recon_loss: bool = False
    use_hinge_loss: bool = True
    vq_codebook_dim: int = 256
    vq_codebook_size: int = 512
    vq_decay: float = 0.8
    vq_commitment_weight: float = 1.0
    vq_kmeans_init: bool = True
    vq_use_cosine_sim: bool = True
    use_vgg_and_gan: bool = True
    vae_type: str = "resnet"
    discr_layers: int = 4
    vq_revive_below: float = 0.1
    apply_grad_penalty_every: int = 4
    discr_start_step: int = 0
    flip_prob: float = 0.5

    @property
    def downsampling(self) -> int:
        """Sides of an image over sides of its latents."""
        return int(2**self.layers)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at full resolution and after each halving."""
        mults = self.layer_mults or tuple(2**layer for layer in range(self.layers))
        return (self.dim, *(self.dim * mult for mult in mults))

    @property
    def blocks_by_layer(self) -> tuple[int, ...]:
        """num_resnet_blocks for each layer."""
        blocks = self.num_resnet_blocks
        return blocks if isinstance(blocks, tuple) else (0,) * (self.layers - 1) + (blocks,)

    @property
    def attention_by_layer(self) -> tuple[bool, ...]:
        """use_attn for each layer."""
        attends = self.use_attn
        return attends if isinstance(attends, tuple) else (False,) * (self.layers - 1) + (attends,)

    @property
    def discriminator_widths(self) -> tuple[int, ...]:
        """Channels of the discriminator at full resolution and after each halving."""
        return (self.dim, *(self.dim * 2**layer for layer in range(self.discr_layers)))

    def __post_init__(self) -> None:
        if self.vae_type != "resnet":
            refused = "the vit of ViT-VQGAN is not built here" if self.vae_type == "vit" else "there is no such one"
            raise ConfigError(f"vae_type is {self.vae_type!r}; {refused}. The one that is: resnet")
        for name in ("dim", "image_size", "channels", "layers", "resnet_groups", "attn_heads", "attn_dim_head",
                     "vq_codebook_dim", "vq_codebook_size", "discr_layers"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"vae.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("apply_grad_penalty_every", "discr_start_step", "vq_commitment_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"vae.{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("attn_dropout", "vq_decay", "vq_revive_below"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"vae.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"vae.flip_prob is {self.flip_prob}; it must be in [0, 1]")
        if self.first_conv_kernel_size % 2 == 0:
            raise ConfigError(f"vae.first_conv_kernel_size is {self.first_conv_kernel_size}; it must be odd")
        if self.dim % self.resnet_groups:
            raise ConfigError(
                f"vae.dim {self.dim} cannot be cut into resnet_groups {self.resnet_groups}; give a multiple, or fewer "
                "groups"
            )
        self._check_layers()

    def _check_layers(self) -> None:
        for name, values in (
            ("layer_mults", self.layer_mults),
            ("num_resnet_blocks", self.blocks_by_layer),
            ("use_attn", self.attention_by_layer),
        ):
            if values is not None and len(values) != self.layers:
                raise ConfigError(f"vae.{name} has {len(values)} values for {self.layers} layers; give one for each")
        if min(self.widths) < 1 or min(self.blocks_by_layer) < 0:
            raise ConfigError("vae.layer_mults must be 1 or more, and vae.num_resnet_blocks 0 or more")
        if self.image_size % self.downsampling:
            raise ConfigError(
                f"vae.image_size is {self.image_size}; with {self.layers} layers it must be a multiple of "
                f"{self.downsampling}"
            )
        if self.use_vgg_and_gan and self.image_size < 2**self.discr_layers:
            raise ConfigError(
                f"vae.discr_layers is {self.discr_layers}, which leaves nothing of an image of {self.image_size} "
                f"pixels; give at most {self.image_size.bit_length() - 1}"
            )
