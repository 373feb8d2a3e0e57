"""Shared computing tools: products, small systems, branches under vmap, batching and pytrees."""
