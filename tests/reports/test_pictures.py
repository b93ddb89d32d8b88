import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tastemaker.reports.pictures import grid, strip

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def boxes(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of all pixels of one colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    assert len(rows), colour
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def ink(sheet: Image.Image, left: int, top: int, right: int, bottom: int) -> int:
    """Dark pixels of a part of the sheet."""
    return int((np.asarray(sheet.convert("L"))[top:bottom, left:right] < 128).sum())


def test_rows_stand_under_each_other_and_columns_side_by_side() -> None:
    sheet = grid([[plain(RED), plain(GREEN)], [plain(BLUE), plain((9, 9, 9))]])
    red, green, blue = (boxes(sheet, colour) for colour in (RED, GREEN, BLUE))
    assert (red[2] - red[0], red[3] - red[1]) == (192, 192)  # 64 pixels grown by 3
    assert green[1] == red[1] and green[0] > red[2]
    assert blue[0] == red[0] and blue[1] > red[3]


@pytest.mark.parametrize(
    ("side", "shown"), [(16, 192), (64, 192), (100, 200), (192, 192), (256, 256), (512, 384), (1024, 384)]
)
def test_small_pictures_grow_by_whole_factors_and_large_ones_shrink(side: int, shown: int) -> None:
    left, top, right, bottom = boxes(strip([plain(RED, (side, side))]), RED)
    assert (right - left, bottom - top) == (shown, shown)


def test_nearest_shows_the_pixels_themselves() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    sheet = np.asarray(strip([Image.fromarray(pixels)], edge=32, resampling="nearest"))
    assert (sheet[24:56, 24:56] == pixels.repeat(4, 0).repeat(4, 1)).all()
    smooth = np.asarray(strip([Image.fromarray(pixels)], edge=32))
    assert sheet.shape == smooth.shape and (sheet != smooth).any()


def test_tensors_are_pictures_too() -> None:
    pixels = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    levels = (pixels.detach() * 255).round().byte().permute(1, 2, 0).numpy()
    expected = strip([Image.fromarray(levels)])
    for tensor in (pixels, pixels.double()):
        assert (np.asarray(strip([tensor])) == np.asarray(expected)).all()
    outside = torch.tensor([1.4, -0.2, float("nan")]).view(3, 1, 1).expand(3, 8, 8)
    assert boxes(strip([outside]), RED)
    with pytest.raises(ValueError, match=r"tensor \[3,H,W\] in \[0, 1\], found the shape \[1, 8, 8\]"):
        strip([torch.zeros(1, 8, 8)])


def test_titles_captions_and_notes_are_written_where_they_belong() -> None:
    rows = [[plain(RED), plain(GREEN)], [plain(BLUE), plain(BLUE)]]
    bare = grid(rows)
    full = grid(rows, ["a red circle", "two"], ["before", "after"], notes=[["1.0 kB", "2"], ["3", "4"]])
    assert full.width > bare.width and full.height > bare.height
    assert ink(bare, 0, 0, bare.width, 24) == 0
    red, green, blue = (boxes(full, colour) for colour in (RED, GREEN, BLUE))
    blank = np.asarray(full.convert("L"))
    assert (blank[: red[1], red[0] : red[2]] < 128).any() and (blank[: red[1], green[0] : green[2]] < 128).any()
    for box in (red, blue):  # titles: left, half way down
        assert ink(full, 0, box[1] + 60, red[0] - 1, box[3] - 60) > 20
    assert ink(full, red[0], red[3], red[2], blue[1]) > 20  # notes: between the rows
    assert ink(full, 0, blue[3], full.width, full.height) > 10


def test_one_list_of_captions_a_row_stands_below() -> None:
    rows = [[plain(RED), plain(GREEN)], [plain(BLUE)]]
    sheet = grid(rows, [["a", "b"], ["c"]])
    assert (np.asarray(sheet) == np.asarray(grid(rows, notes=[["a", "b"], ["c"]]))).all()
    assert boxes(sheet, RED)[1] == 24  # nothing above


def test_long_words_are_broken_and_cut_inside_their_column() -> None:
    long = "a cat riding a bike in the rain oil on canvas highly detailed and much more than could ever be shown here"
    for text in (long, "x" * 200, "word " * 100):
        sheet = grid([[plain(RED), plain(GREEN)]], [text, ""])
        red, green = boxes(sheet, RED), boxes(sheet, GREEN)
        assert ink(sheet, red[0], 0, red[2], red[1]) > 100
        assert ink(sheet, green[0], 0, sheet.width, green[1]) == 0  # the neighbour's room stays empty
        assert red[1] < 110  # three lines at most


def test_pictures_of_unequal_size_stand_in_the_middle_of_their_cells() -> None:
    sheet = strip([plain(RED, (64, 64)), plain(GREEN, (64, 32))])
    red, green = boxes(sheet, RED), boxes(sheet, GREEN)
    assert green[3] - green[1] == 96
    assert green[1] + green[3] == red[1] + red[3]


def test_is_written(tmp_path: Path) -> None:
    sheet = grid([[plain(RED)]], ["é — unusual ünïcode 漢"], ["t"], tmp_path / "before_after.png")
    with Image.open(tmp_path / "before_after.png") as read:
        assert (np.asarray(read) == np.asarray(sheet)).all()
    strip([plain(RED)], path=tmp_path / "strip.webp")
    with Image.open(tmp_path / "strip.webp") as read:
        assert read.size == (240, 240)


def test_refuses_what_does_not_fit() -> None:
    row = [plain(RED), plain(GREEN)]
    for error, arguments in {
        "no picture to show": ([],),
        "no picture": ([[]],),
        "3 captions for 2 columns": ([row], ["a", "b", "c"]),
        "1 titles for 2 rows": ([row, row], (), ["a"]),
        r"rows of \[1\] texts below rows of \[2\] pictures": ([row], [["a"]]),
    }.items():
        with pytest.raises(ValueError, match=error):
            grid(*arguments)
    with pytest.raises(ValueError, match="stand where notes stand"):
        grid([row], [["a", "b"]], notes=[["a", "b"]])


def test_reports_load_no_torch() -> None:
    code = (
        "import sys, tastemaker.reports.pictures, tastemaker.reports.plot\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
