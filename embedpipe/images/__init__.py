"""Decode image bytes to pixels for a model; HTML pages and contact sheets of images."""
