"""dalle2_core: tensors in memory. The unCLIP prior and decoder, in pure torch."""
