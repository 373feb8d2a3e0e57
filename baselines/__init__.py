"""What jaxreg is compared with: plug-ins of its harness, found by entry points."""
