"""The parts of `python -m jaxreg.align`: image files, pairs, tables of answers, output pictures."""

# Styles of an overlay. Here, so that the command can define its flags before it imports OpenCV,
# which `jaxreg.alignment.pictures` needs: a broken OpenCV is then an error in one line.
STYLES = ("checkerboard", "red-cyan")
