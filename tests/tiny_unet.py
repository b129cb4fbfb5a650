"""Small U-Nets for tests, and one that knows the answer."""

import torch

from dalle2_core import DecoderCondition, Unet
from dalle2_core.networks.unet_conditioning import Conditioning
from dalle2_core.networks.unet_config import UnetConfig

SMALL = {"dim": 8, "dim_mults": (1, 2), "image_embed_dim": 6, "resnet_groups": 2, "attn_heads": 2, "attn_dim_head": 4,
         "num_resnet_blocks": 1, "init_cross_embed_kernel_sizes": (3, 5)}  # fmt: skip


def unet(seed=0, **keywords):
    """A small network whose last convolution is not zero, so that everything before it shows."""
    torch.manual_seed(seed)
    net = Unet(**{**SMALL, **keywords})
    torch.nn.init.normal_(net.to_out.weight, std=0.2)
    return net


def condition_for(net, rows, size=8, seed=0):
    """Random conditions of all that the network asks for."""
    config, draw = net.config, torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    text = config.cond_on_text_encodings
    return DecoderCondition(
        image_embed=normal(rows, config.image_embed_dim) if config.sees_image_embed else None,
        text_tokens=normal(rows, 5, config.text_embed_dim) if text else None,
        text_mask=torch.arange(5) < torch.arange(rows)[:, None] + 2 if text else None,
        lowres=normal(rows, config.channels, size, size) if config.lowres_cond else None,
        lowres_noise=torch.arange(rows) * 7 if config.lowres_noise_cond else None,
    )


class GaussianUnet(torch.nn.Module):
    """The best network for Gaussian data whose rows, flattened, have this mean and covariance.

    It gives the expectation of the target given x_t and, where the variance is learned, the fraction that makes the
    reverse process exact (data of one dimension), for steps from each timestep to the one `before` it says.
    """

    def __init__(self, shape, mean, covariance, predicts, schedule, before=None):
        super().__init__()
        channels = shape[0]
        learned = before is not None
        self.config = UnetConfig(
            dim=8, dim_mults=(1,), channels=channels, channels_out=channels * (2 if learned else 1),
        )  # fmt: skip
        self.condition = Conditioning(self.config)  # answers `check`, and has the parameter that says the device
        self.mean, self.covariance, self.predicts, self.schedule = mean, covariance, predicts, schedule
        self.before = before

    def forward(self, x_t, t, condition, self_cond=None):
        alpha, sigma = self.schedule.alpha(t)[0].double(), self.schedule.sigma(t)[0].double()
        flat = x_t.flatten(1).double()
        covariance, mean = self.covariance.double(), self.mean.double()
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(len(mean)))
        x0 = mean + (flat - alpha * mean) @ gain.T
        output = self.predicts.target(x0, (flat - alpha * x0) / sigma, alpha, sigma).view(x_t.shape)
        if self.before is None:
            return output.float()
        left = covariance[0, 0] - gain[0, 0] * alpha * covariance[0, 0]
        fraction = self.right_fraction(t[0], self.before[int(t[0])], left)
        return torch.cat((output, torch.full_like(output, float(2 * fraction - 1))), dim=1).float()

    def right_fraction(self, t, s, left):
        """Of the variance of p(x_s | x_t): the posterior's for a known x0, and what is not known of x0, scaled."""
        from dalle2_core.diffusion.posterior import log_variance, posterior

        schedule, one = self.schedule, torch.ones(1)
        s = torch.tensor(s)
        weight = posterior(0 * one, one, schedule, t, s)[0]
        variance = posterior(one, one, schedule, t, s)[1] + weight**2 * left
        low, high = (log_variance(torch.full((1,), share), schedule, t, s) for share in (0.0, 1.0))
        return (variance.log() - low) / (high - low)
