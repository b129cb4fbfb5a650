"""Training images: joined with embeddings by key, shuffled, decoded and batched."""
