"""Every numerical tolerance of the tests, in one place, with its reason."""

# OpenCV 4 rounds warp coordinates to 1/32 px; on images of slope up to 255 a pixel that is 8 grey
# levels at worst, and far less on the smooth images of the tests. OpenCV 5 is exact to rounding.
OPENCV_WARP = 0.5
# float32 rounding of intensities up to 255 after a few dozen operations.
FLOAT32_INTENSITY = 2e-3
# float32 rounding of pixel coordinates up to 512.
FLOAT32_PIXELS = 2e-4
# float32 rounding of angles up to 180 degrees.
FLOAT32_DEGREES = 2e-4
# float32 rounding of a network's activations in the order of 1, after sums over thousands of terms.
FLOAT32_NETWORK = 2e-5
# float32 rounding through 53 convolutions whose activations reach 15.
RESNEXT = 1e-4
# px and degrees: a pair of 8-bit files of 48x40 pixels, rounded to whole grey levels.
ALIGNED_FILES = 0.05
# Grey levels, on a ramp of up to 5.4 a pixel: OpenCV 4 rounds warp coordinates to 1/32 px.
DOWNSAMPLED_RAMP = 0.2
