"""The report's files: one page that needs nothing else, pictures, data."""

import re
from pathlib import Path

import pytest

from dataplane.bench.analyse import analyse
from dataplane.bench.modes import MODES
from dataplane.bench.report.page import page, write_report
from dataplane.bench.report.plots import STYLE, pictures
from dataplane.bench.results import read
from tests.unit.bench_runs import made_up

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_full_run_gives_every_picture(tmp_path: Path) -> None:
    run = made_up()
    files = write_report(run, tmp_path)
    names = {path.name for path in files}
    assert names == {path.name for path in tmp_path.iterdir()}
    for name in ("connect-p50", "connect-p99", "against-direct", "positions", "cpu", "coldstart", "change", "memory"):
        image = (tmp_path / f"{name}.png").read_bytes()
        assert image.startswith(PNG)
        assert len(image) > 10_000
    assert read(tmp_path / "results.json") == run


def test_the_page_stands_alone_and_tells_the_main_things() -> None:
    run = made_up(speed={"nftables": 0.5})
    found = analyse(run)
    text = page(run, found, pictures(found))
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "Where iptables wins" in text
    assert '<td class="missed">missed</td>' in text
    assert '<td class="met">met</td>' in text
    assert run.command in text
    assert "Test CPU" in text


def test_text_from_a_results_file_is_escaped() -> None:
    run = made_up(services=(1,))
    run.command = "<script>alert(1)</script>"
    found = analyse(run)
    assert "<script>" not in page(run, found, {})


@pytest.mark.parametrize("services", [(1,), (10000,)])
def test_a_run_of_one_size_has_no_lines_over_sizes(services: tuple[int, ...]) -> None:
    found = pictures(analyse(made_up(services=services)))
    assert "connect-p50" not in found
    assert "against-direct" in found


def test_a_run_without_anything_still_gives_a_page(tmp_path: Path) -> None:
    run = made_up(services=(1,))
    run.cells.clear()
    write_report(run, tmp_path)
    assert "Nothing was measured" in (tmp_path / "index.html").read_text()


def test_every_mode_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(STYLE) == set(MODES)
    assert len({colour for colour, _, _ in STYLE.values()}) == len(STYLE)
    assert len({marker for _, marker, _ in STYLE.values()}) == len(STYLE)
