"""The numbers of the paper's Tables 1 to 6, as printed.

Ma, Zhao and Cheng, Self-Supervised Rigid Registration for Small Images, KSII TIIS 15(1), 2021.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Value:
    """A printed ``mean ± spread``."""

    mean: float
    spread: float


@dataclasses.dataclass(frozen=True)
class Errors:
    """One row of Tables 1, 2, 4 and 5; None is the paper's "N.A.".

    Attributes:
      translation: pixels, Eq. 2.
      rotation: degrees, Eq. 4.
      seconds: to register one pair.
      failure: the bracket after a feature method's name: the share of pairs with too few keypoints.
    """

    translation: Value | None = None
    rotation: Value | None = None
    seconds: Value | None = None
    failure: float | None = None


@dataclasses.dataclass(frozen=True)
class ErrorTable:
    """Table 1, 2, 4 or 5: the errors on a suite, with a row for each system by name."""

    number: int
    title: str
    suite: str
    rows: dict[str, Errors]


@dataclasses.dataclass(frozen=True)
class KeypointTable:
    """Table 3 or 6: the number of keypoints for each suite and feature method."""

    number: int
    title: str
    suites: tuple[str, str]
    rows: dict[str, tuple[Value, Value]]


def _row(*values: tuple[float, float], failure: float | None = None) -> Errors:
    translation, rotation, seconds = (Value(*v) for v in values)
    return Errors(translation, rotation, seconds, failure)


_NEVER = Errors(failure=1.0)

ERROR_TABLES = (
    ErrorTable(
        1,
        "Prediction errors and registration time for transformed CIFAR-10 images",
        "cifar10",
        {
            "akaze": _NEVER,
            "orb": _NEVER,
            "surf": _NEVER,
            "sift": _row((13.3594, 6.2321), (62.0331, 52.7100), (0.0093, 0.0064), failure=0.9505),
            "fft": _row((1.4542, 0.6620), (7.9713, 5.1973), (2.4132, 0.0896)),
            "resnext_fc": _row((1.0182, 0.8282), (6.6140, 7.3644), (0.0536, 0.0090)),
            "resnext_lstm": _row((0.8328, 0.7147), (5.6407, 6.1125), (0.0546, 0.0083)),
            "lstm": _row((0.6641, 0.4848), (7.8624, 8.1080), (0.0007, 0.0003)),
        },
    ),
    ErrorTable(
        2,
        "Prediction errors and registration time for transformed random 32x32 images",
        "random32",
        {
            "akaze": _NEVER,
            "orb": _NEVER,
            "surf": _NEVER,
            "sift": _NEVER,
            "fft": _row((0.5004, 0.0649), (0.3596, 0.1117), (2.2415, 0.1396)),
            "resnext_fc": _row((0.9879, 0.9742), (6.3044, 7.7589), (0.0502, 0.0080)),
            "resnext_lstm": _row((0.8320, 1.0346), (5.6148, 7.1531), (0.0528, 0.0084)),
            "lstm": _row((1.0474, 1.5365), (12.1091, 17.8267), (0.0007, 0.0003)),
        },
    ),
    ErrorTable(
        4,
        "Prediction errors and registration time for transformed STL-10 images",
        "stl10",
        {
            "akaze": _row((49.5539, 18.8692), (47.8793, 45.2319), (0.0090, 0.0024), failure=0.9948),
            "orb": _row((40.2261, 16.9984), (74.2664, 58.4848), (0.0128, 0.0412), failure=0.9466),
            "surf": _row((31.1103, 18.0714), (72.2730, 60.4200), (0.0106, 0.0043), failure=0.8438),
            "sift": _row((29.6221, 17.5444), (67.7139, 62.8882), (0.0175, 0.0051), failure=0.6510),
            "fft": _row((0.8751, 1.1441), (1.0525, 2.7068), (11.3075, 1.1275)),
            "resnext_fc": _row((3.0326, 2.6558), (6.2268, 7.2041), (0.0491, 0.0083)),
            "resnext_lstm": _row((2.7797, 2.7902), (6.9497, 5.7735), (0.0539, 0.0081)),
            "lstm": _row((1.7943, 1.0922), (5.9582, 5.7487), (0.0009, 0.0003)),
        },
    ),
    ErrorTable(
        5,
        "Prediction errors and registration time for transformed random 96x96 images",
        "random96",
        {
            "akaze": _NEVER,
            "orb": _row((36.4939, 20.3236), (72.7067, 60.6450), (0.0119, 0.0190), failure=0.9531),
            "surf": _row((29.0270, 14.4547), (76.0592, 56.8022), (0.0153, 0.0055), failure=0.9193),
            "sift": _row((31.3871, 19.4016), (56.7080, 59.4889), (0.0190, 0.0059), failure=0.7969),
            "fft": _row((0.4982, 0.0618), (0.2494, 0.0448), (11.8021, 1.8278)),
            "resnext_fc": _row((2.4061, 2.7931), (5.3728, 7.3070), (0.0525, 0.0084)),
            "resnext_lstm": _row((2.3763, 2.8637), (6.0183, 5.4018), (0.0545, 0.0080)),
            "lstm": _row((2.4931, 3.6001), (7.8609, 11.2270), (0.0009, 0.0003)),
        },
    ),
)

KEYPOINT_TABLES = (
    KeypointTable(
        3,
        "Number of keypoints that feature-based approaches detect in 32x32 images",
        ("cifar10", "random32"),
        {
            "akaze": (Value(0.0, 0.0), Value(0.0, 0.0)),
            "orb": (Value(0.0, 0.0), Value(0.0, 0.0)),
            "surf": (Value(0.0116, 0.1071), Value(0.0023, 0.0481)),
            "sift": (Value(0.9010, 1.5595), Value(0.0764, 0.2988)),
        },
    ),
    KeypointTable(
        6,
        "Number of keypoints that feature-based approaches detect in 96x96 images",
        ("stl10", "random96"),
        {
            "akaze": (Value(0.2083, 0.6154), Value(0.0648, 0.3274)),
            "orb": (Value(1.1181, 3.1494), Value(0.8264, 2.2073)),
            "surf": (Value(3.9792, 3.6926), Value(8.8125, 20.0195)),
            "sift": (Value(7.8125, 8.3106), Value(3.3657, 3.4143)),
        },
    ),
)

TABLES: dict[int, ErrorTable | KeypointTable] = dict(
    sorted({table.number: table for table in (*ERROR_TABLES, *KEYPOINT_TABLES)}.items())
)
SUITES = tuple(table.suite for table in ERROR_TABLES)

# Figure -> (system, suite), Figs. 4 to 11.
SCATTER_FIGURES = {
    4: ("lstm", "cifar10"),
    5: ("resnext_lstm", "cifar10"),
    6: ("resnext_fc", "cifar10"),
    7: ("fft", "cifar10"),
    8: ("lstm", "stl10"),
    9: ("resnext_lstm", "stl10"),
    10: ("resnext_fc", "stl10"),
    11: ("fft", "stl10"),
}
