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
# A pair made by bilinear warping, solved with the same kernel: float32 rounding of the normal
# equations remains; the bar of the project is 0.001 px and 0.003 degrees.
REGISTERED_EXACTLY = (1e-3, 3e-3)
# The default must not know the kernel; the bar of the project.
REGISTERED = (0.05, 0.1)
# Rounding to whole grey levels is noise of variance 1/12 in the moving image.
REGISTERED_ROUNDED = (0.01, 0.02)
# Registration by gradients of a photograph: float32 noise of the normal equations, px and degrees.
REGISTERED_UNIT = 2e-3
# px: the median of 50 to 60 errors of .015 to .02 px, whose own error is .003.
UNBIASED = 0.007
# px and degrees: pairs with noise 10, which moves answers by .03 and .08; in another unit the
# gain found differs by some thousandths, and so do the noise assumed and the answer.
SAME_UNDER_NOISE = (0.01, 0.03)
# px and degrees: a blurred edge whose place along itself only a faint slow wave tells; what it came
# back from is 5 px off.
SLID_BACK = 0.3
# float32 rounding of a correlation coefficient over a few hundred pixels.
FLOAT32_CORRELATION = 1e-5
# float32 rounding of the inverse of a well-conditioned matrix of up to 9 rows, times the matrix.
FLOAT32_INVERSE = 1e-4
# px and degrees: SimpleITK, ECC (px) and pystackreg, each with its own kernel, on two smooth 32x32
# pictures with black corners; where the black pulls they are off by .07 to .16 px.
PEER_WITHOUT_BLACK = (0.05, 0.25)
# Relative: float32 rounding of sums over an image, and finite differences in float64.
FISHER = 1e-4
# px and degrees, of 32x32 pictures enlarged four times, where matches agree within 1 px.
ENLARGED_FEATURES = (0.7, 3.0)
# px and degrees, of 128x128 pictures: OpenCV's default SIFT is half a pixel off, which a turn shows
# as up to 1 px.
NATIVE_FEATURES = (1.5, 2.0)
# px of the picture: a median over ten or more matches, each good to about an enlarged pixel.
ENLARGED_KEYPOINTS = 0.15
# px and degrees: points that agree exactly, and outliers that chance puts within half a pixel.
CONSENSUS = 0.2
# Entries of a covariance, as correlations: what is left of the optimum's own convergence.
SAME_COVARIANCE = 1e-3
# Mean of error^2 / variance: 1 if right, from 128 pairs with an error of its own of some 15%.
CALIBRATED = (0.6, 1.6)
# The same under noise that is smooth over up to 2 px, of which windows of 5 px do not see all.
SMOOTH_NOISE = 3.5
