"""Durations and sizes, written the way people read them."""


def hours(duration_s: float) -> str:
    """Write a duration.

    >>> hours(30), hours(600), hours(7_200)
    ('30.0 s', '10.0 min', '2.00 h')
    """
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    if duration_s < 3_600:
        return f"{duration_s / 60:.1f} min"
    return f"{duration_s / 3_600:,.{2 if duration_s < 360_000 else 0}f} h"


def megabytes(size_bytes: float) -> str:
    """Write a size.

    >>> megabytes(20_000), megabytes(3_400_000), megabytes(262e9)
    ('20 kB', '3.4 MB', '262.0 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:,.1f} {name}"
    return f"{size_bytes / 1e3:,.0f} kB"


def percent(share: float) -> str:
    """Write a share in per cent, with the digits that matter.

    >>> percent(0.5), percent(0.031), percent(0.00042), percent(0.0)
    ('50 %', '3.1 %', '0.042 %', '0 %')
    """
    value = 100 * share
    if value == 0 or value >= 10:
        return f"{value:.0f} %"
    return f"{value:.2g} %"
