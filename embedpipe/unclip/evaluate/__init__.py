"""How good trained models are on held-out rows."""

from embedpipe.callable_package import callable_as

callable_as(__name__, ".priors:evaluate_priors")
