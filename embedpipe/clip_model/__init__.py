"""Model cards and specs: what determines the outputs of a CLIP model, without loading it."""
