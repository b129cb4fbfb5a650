"""Pretrained decoders of diffusers in the place of our own: which there are, how they draw, and what of."""
