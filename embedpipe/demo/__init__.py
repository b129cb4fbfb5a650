"""The demo data set: emoji rendered with captions, served on loopback."""
