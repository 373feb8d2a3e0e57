"""Methods to compare jaxreg with: plug-ins of its harness, found by entry points."""
