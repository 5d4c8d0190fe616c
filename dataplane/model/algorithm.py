"""Annotation of a Service about the choice of an endpoint for clients from outside."""

ALGORITHM_ANNOTATION = "service.hotplane.io/lb-algorithm"
"""In place of the node's `--lb-algorithm`."""

ALGORITHM_FIELD = f"metadata.annotations[{ALGORITHM_ANNOTATION}]"
ALGORITHMS = ("random", "maglev")
"""Values of the annotation (policy.algorithm.Algorithm)."""
