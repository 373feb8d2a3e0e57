"""The answers of a table for other pictures of the same views, such as another channel."""

from __future__ import annotations

from pathlib import Path

from jaxreg.alignment.pages import own_name, page_names, split_page
from jaxreg.alignment.table import images_in, read_table

_NAMED = 5  # pictures without a row, or rows without a picture, that an error names


def rows_for_stack(table: str, stack: str) -> list[dict[str, str]]:
    """The table's rows, in the order of pages, for the pages of another TIFF, number by number.

    Raises:
      OSError: a file cannot be read.
      ValueError: it is no table or no TIFF, or has not the same pages.
    """
    pages = {split_page(page)[1]: page for page in page_names(stack)}
    rows = {split_page(row["moving"])[1]: row for row in read_table(table)}
    if rows.keys() != pages.keys():
        count = "other files than pages" if None in rows else f"{len(rows)} pages"
        raise ValueError(f"{stack} has {len(pages)} pages, but the rows of {table} are of {count}")
    return [_for_picture(rows[number], page) for number, page in pages.items()]


def rows_for_folder(table: str, folder: str) -> list[dict[str, str]]:
    """The table's rows for the images of another folder that have the names of its moving ones.

    Raises:
      OSError: a file cannot be read.
      ValueError: it is no table or no folder, or has not the same names.
    """
    images = images_in(folder, "moving_dir")
    rows = {Path(own_name(row["moving"])).stem: row for row in read_table(table)}
    if alone := sorted(rows.keys() ^ images.keys()):
        named = ", ".join(alone[:_NAMED]) + ", ..." * (len(alone) > _NAMED)
        raise ValueError(
            f"{folder} must have an image for each row of {table} and no others; without a partner "
            f"there: {named}"
        )
    return [_for_picture(rows[name], image) for name, image in images.items()]


def _for_picture(row: dict[str, str], image: str) -> dict[str, str]:
    return row | {"fixed": image, "moving": image}
