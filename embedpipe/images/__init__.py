"""Image bytes → pixels for a model."""
