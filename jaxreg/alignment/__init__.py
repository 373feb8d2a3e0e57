"""What `python -m jaxreg.align` is made of: files, working sizes, pictures, folders of pairs."""

STYLES = ("checkerboard", "red-cyan")  # of an overlay
