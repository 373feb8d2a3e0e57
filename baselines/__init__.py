"""What jaxreg is compared with, plugged into its harness through the `jaxreg.methods` entry points."""
