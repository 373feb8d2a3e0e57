"""Files to align, and a stand-in for the registration that knows the answer."""

import cv2
import numpy as np
import tifffile

import jaxreg
from jaxreg import RigidTransform
from jaxreg.align import main
from jaxreg.alignment.files import write_picture
from jaxreg.alignment.pictures import warp_pixels
from jaxreg.result import Doubt, Registration

TRUTH = RigidTransform(3.0, -2.0, 40.0)
VARIANCE = np.diag([0.01, 0.04, 0.09])


def stand_in(monkeypatch):
    """Registration by a stand-in that knows the answer; unlike images are not trusted."""
    seen = []

    def register_batch(fixed, moving, *, method, **searched):
        seen.append((fixed.shape, method))
        if fixed.shape[1] == 24:
            raise ValueError("this method wants\nother images")
        n = len(fixed)
        trusted = [b.std() > 10 for b in moving]
        return Registration(
            RigidTransform(*(np.full(n, v) for v in (TRUTH.tx, TRUTH.ty, TRUTH.theta))),
            np.full(n, 0.9), np.array(trusted), np.stack([VARIANCE] * n), np.full(n, True),
            np.where(trusted, 0, Doubt.UNDETERMINED),
        )  # fmt: skip

    def register(fixed, moving, **options):
        r = register_batch(fixed[None], moving[None], **options)
        t = RigidTransform(r.transform.tx[0], r.transform.ty[0], r.transform.theta[0])
        return Registration(t, r.score[0], r.success[0], r.covariance[0], r.found[0], r.doubts[0])

    monkeypatch.setattr(jaxreg, "register", register)
    monkeypatch.setattr(jaxreg, "register_batch", register_batch)

    return seen


def scene(height=40, width=48, channels=3, dtype=np.uint8, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 1, (height, width, channels))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2).reshape(height, width, channels)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    top = 1.0 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    return (smooth * top).astype(dtype) if channels > 1 else (smooth[..., 0] * top).astype(dtype)


def save_pair(folder, dtype=np.uint8, suffix=".png", **shape):
    image = scene(dtype=dtype, **shape)
    paths = [folder / f"fixed{suffix}", folder / f"moving{suffix}"]
    write_picture(paths[0], image)
    write_picture(paths[1], warp_pixels(image, TRUTH))
    return [str(path) for path in paths]


def run(*arguments):
    return main(["align", *map(str, arguments)])


def save_movie(path, seed=0, dtype=np.uint16, **how):
    """Four pages, of which the third shows nothing and cannot be registered."""
    pages = np.stack([scene(channels=1, dtype=dtype, seed=seed + k) for k in range(4)])
    pages[2] = 50
    tifffile.imwrite(path, pages, **({"photometric": "minisblack"} | how))
    return pages


def steady(pages):
    """What the stand-in's answer makes of the pages of `save_movie`."""
    moved = np.stack([warp_pixels(page, TRUTH, back=True) for page in pages])
    moved[2] = 0
    return moved
