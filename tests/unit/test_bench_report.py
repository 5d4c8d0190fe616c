"""The report's files: one page that needs nothing else, pictures, data."""

import base64
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.bars import Verdict, bars
from dataplane.bench.figures.results import Results, ResultsError, read
from dataplane.bench.modes import MODES
from dataplane.bench.report.charts import CAPTIONS, MAIN, charts, style
from dataplane.bench.report.markdown import BEGIN, END, MarkersError, insert, markdown
from dataplane.bench.report.page import _SECTIONS, page, write_report
from dataplane.bench.report.svg import MARKERS, Axis, Group, Mark, grouped
from dataplane.bench.scenarios import SCENARIOS
from tests.unit.bench_runs import made_up

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """A run in which nftables misses bars, and the directory of its report."""
    run, directory = made_up(speed={"nftables": 0.5}), tmp_path_factory.mktemp("report")
    files = write_report(run, directory)
    assert set(files) == set(directory.iterdir())
    return run, directory


def test_a_full_run_gives_every_chart(report: tuple[Results, Path]) -> None:
    run, directory = report
    shown = [MAIN, *(name for names in _SECTIONS.values() for name in names)]
    assert sorted(shown) == sorted(CAPTIONS)
    asked_for = {"scaling-connect", "scaling-forward"}  # only with --processors
    assert {path.stem for path in directory.glob("*.svg")} == set(CAPTIONS) - asked_for
    for path in directory.glob("*.svg"):
        picture = ElementTree.fromstring(path.read_text())
        words = [text.text or "" for text in picture.iter(f"{SVG}text")]
        assert any("(logarithmic)" in text or "(linear, from 0)" in text for text in words), path.name
        tips = [mark.attrib["data-tip"] for mark in picture.iter(f"{SVG}g") if "data-tip" in mark.attrib]
        assert len(tips) > 5
        assert all("rounds" in tip or "one round" in tip for tip in tips), path.name
    log = (directory / "latency.hlog").read_text().splitlines()
    assert len([line for line in log if line.startswith("Tag=TCP_CRR@95/nftables/10000,")]) == run.settings.light_rounds
    assert read(directory / "results.json") == run
    assert (directory / "tables.md").read_text() == markdown(run, whole=True)


def test_an_interval_that_goes_on_beyond_the_chart_is_cut_with_a_mark() -> None:
    axis = Axis(0.0, 1.5, False, "ratio (linear, from 0)")
    whole = {"nftables": Mark(0.9, 0.8, 1.0, "a")}
    cut = {"nftables": Mark(0.9, 0.8, 7.25, "a"), "ebpf-tc": Mark(3.0, 2.0, 4.0, "b")}
    assert "goes on" not in grouped([Group("x", whole)], "t", axis, "")
    drawn = grouped([Group("x", cut)], "t", axis, "")
    assert "cut: the interval goes on to 7.25" in drawn
    assert "cut: the interval goes on to 4" in drawn
    ElementTree.fromstring(drawn)


def test_the_page_stands_alone_and_tells_the_main_things_first(report: tuple[Results, Path]) -> None:
    run, directory = report
    text = (directory / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert all(source.startswith(("data:", "#")) for source in sources)
    order = ('class="card"', f'id="chart-{MAIN}"', "<nav>", 'id="what-wins-where"', 'id="against-direct"')
    places = [text.index(piece) for piece in order]
    assert places == sorted(places)
    assert "Where iptables wins" in text
    assert '<td class="missed">missed</td>' in text
    assert '<td class="met">met</td>' in text
    assert run.command in text
    assert "Test CPU" in text
    assert "first packet latency" in text


def test_scenarios_have_the_same_name_everywhere(report: tuple[Results, Path]) -> None:
    _, directory = report
    text, tables = (directory / "index.html").read_text(), (directory / "tables.md").read_text()
    for name in ("TCP_CRR", "TCP_RR", "TCP_STREAM", "UDP_RR", "coldstart"):
        assert f'title="{SCENARIOS[name].title}">{name}</th>' in text
        assert f"| {name} | 10000 |" in tables
    assert f">{'TCP_CRR'}</text>" in (directory / "against-direct.svg").read_text()


def test_no_figure_stands_without_its_rounds_and_spread(report: tuple[Results, Path]) -> None:
    _, directory = report
    cells = re.findall(
        r'<td class="number(?: best)?">([^<]+) <small>([^<]*)</small></td>', (directory / "index.html").read_text()
    )
    assert len(cells) > 50
    assert all(re.fullmatch(r"\d+%(, \d+ rounds)?|1 round", spread) for _, spread in cells)


def test_the_raw_data_in_the_page_is_the_run(tmp_path: Path) -> None:
    run = made_up(services=(1,))
    found = analyse(run)
    [data] = re.findall(r'href="data:application/gzip;base64,([^"]+)"', page(run, found, {}))
    (tmp_path / "results.json.gz").write_bytes(base64.b64decode(data))
    assert read(tmp_path / "results.json.gz") == run
    (tmp_path / "half.json.gz").write_bytes(base64.b64decode(data)[:500])
    with pytest.raises(ResultsError, match="not a whole compressed file"):
        read(tmp_path / "half.json.gz")


def test_tables_in_markdown_are_whole_and_go_between_the_markers() -> None:
    run = made_up(speed={"nftables": 0.5})
    whole, text = markdown(run, whole=True), markdown(run)
    assert {line.count("|") for line in whole.splitlines() if "connections/s" in line} == {9}
    assert "| **missed** |" in whole
    [direct] = [line for line in text.splitlines() if "a node without rules" in line and "≥ 0.8 " in line]
    assert direct.count("|") == 5
    assert ") **missed** |" in direct
    assert run.command in text
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = insert(page, text, "README.md")
    assert insert(once, text, "README.md") == once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "\nold\n" not in once
    for broken in ("nothing", BEGIN, END + BEGIN, page + page):
        with pytest.raises(MarkersError, match=r"README\.md"):
            insert(broken, text, "README.md")


def test_the_pages_tables_are_those_of_the_committed_run() -> None:
    """When this fails: hotplane bench report docs/bench/results.json -o docs/bench --into docs/bench/README.md"""
    committed, shown = ROOT / "docs/bench/results.json", (ROOT / "docs/bench/README.md").read_text()
    expected = markdown(read(committed)) if committed.exists() else "`tests/perf/bench` measures, and writes here.\n"
    assert insert(shown, expected, "docs/bench/README.md") == shown


def test_the_readmes_figures_are_lines_of_the_committed_run() -> None:
    """When this fails: copy machine, table lines and warning from docs/bench/README.md, and look at what is said."""
    section = (ROOT / "README.md").read_text().split("\n## Benchmark\n")[1].split("\n## ")[0]
    run = read(ROOT / "docs/bench/results.json")
    lines, text = markdown(run).splitlines(), " ".join(section.split())
    shown = [line for line in section.splitlines() if line.startswith(("|", "> "))]
    assert len(shown) > 6
    assert [line for line in shown if line not in lines] == []
    assert lines[0] in text
    verdicts = [row.verdict for row in bars(run, analyse(run))]
    met, missed = verdicts.count(Verdict.MET), verdicts.count(Verdict.MISSED)
    assert (
        f"Of the {len(verdicts)} figures of the nftables and ebpf modes that have a bar, {met} met it, {missed} missed "
        f"it, and for {len(verdicts) - met - missed} the run could not tell."
    ) in text


def test_text_from_a_results_file_is_escaped() -> None:
    run = made_up(services=(1,))
    run.command = "<script>alert(1)</script>"
    found = analyse(run)
    assert "<script>alert" not in page(run, found, {})


@pytest.mark.parametrize("services", [(1,), (10000,)])
def test_a_run_of_one_size_has_no_lines_over_sizes(services: tuple[int, ...]) -> None:
    found = charts(analyse(made_up(services=services)))
    assert MAIN not in found
    assert "against-direct" in found


def test_a_run_without_anything_still_gives_a_page(tmp_path: Path) -> None:
    run = made_up(services=(1,))
    run.cells.clear()
    write_report(run, tmp_path)
    assert "Nothing was measured" in (tmp_path / "index.html").read_text()


def test_every_mode_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(MARKERS) == set(MODES)
    assert len(set(MARKERS.values())) == len(MARKERS)
    light, dark = style().split("prefers-color-scheme")
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", scheme))
        assert set(MODES) <= set(colours)
        assert len(set(colours.values())) == len(colours)
