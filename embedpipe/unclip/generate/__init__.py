"""Images from texts, images and embeddings."""

from embedpipe.callable_package import callable_as

callable_as(__name__, ".job:generate")
