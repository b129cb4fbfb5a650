"""Image shards: assembly, commit and duplicate handling."""
