"""Named, complete configurations of priors, decoders, CLIP models and autoencoders. All values are plain JSON."""
