"""The direct method: global search, then Gauss-Newton to numerical precision.

The stages of a registration and their modules:

1. `preparation`: outlier pixels, zero padding, common intensity units, dominant colour axis.
   `masking`: which pixels count, and the values that replace those that do not.
2. `coarse_to_fine`: `correlation` of rotated `discs` at all shifts on a coarse `pyramid` level,
   `refinement` of the candidates by Gauss-Newton, `ranking` by local evidence; a finer search and
   `sliding` where no candidate is clearly the best.
3. `finishing`: `kernel_choice` decides which image is pulled and by which kernel; `optimum` solves
   for the transform, gain and bias with the `normal_equations` of instrumental variables
   (`instruments`, denoised by `denoising`; `resampling`, `intensity` and `robust` weights).
4. `trust`: whether the answer should be trusted, and if not, why.

`align` runs these for one pair; `settings` holds the options.
"""
