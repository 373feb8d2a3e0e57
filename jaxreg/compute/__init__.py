"""How things are computed: products, small systems, branches in batches, chunks and pytrees."""
