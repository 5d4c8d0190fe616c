"""The report's files: one page that needs nothing else, pictures, data."""

import base64
import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.results import Results, ResultsError, read
from dataplane.bench.modes import MODES
from dataplane.bench.report.charts import CAPTIONS, MAIN, alone, charts, style
from dataplane.bench.report.markdown import MarkersError, insert, made_by, markdown, marks
from dataplane.bench.report.page import _SECTIONS, page, write_report
from dataplane.bench.report.svg import MARKERS, Axis, Group, Mark, grouped, lines
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
    asked_for = {"scaling-connect", "scaling-forward"}  # only with --processors, the others with --peer
    asked_for |= {"first-cold", "first-change", "first-rollout"}
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
    assert "Where iptables or direct wins" in text
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


def test_tables_in_markdown_are_whole() -> None:
    run = made_up(speed={"nftables": 0.5})
    whole, text = markdown(run, whole=True), markdown(run)
    assert {line.count("|") for line in whole.splitlines() if "connections/s" in line} == {11}
    assert "| **missed** |" in whole
    [tracked] = [line for line in text.splitlines() if "connections tracked" in line and "≥ 0.95 " in line]
    assert tracked.count("|") == 5
    assert ") **missed** |" in tracked
    assert run.command in text


def page_with(*blocks: str) -> str:
    return "before\n" + "between\n".join(f"{begin}\nold\n{end}\n" for begin, end in map(marks, blocks)) + "after\n"


def test_a_page_gets_the_blocks_that_it_has_comments_for_and_keeps_the_rest() -> None:
    run, empty = made_up(services=(1, 10000), rounds=3), page_with("picture", "figures", "wins")
    once = insert(empty, run, "README.md", "docs/bench")
    assert insert(once, run, "README.md", "docs/bench") == once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert once.count("between\n") == 2
    assert "\nold\n" not in once
    assert f"]({'docs/bench'}/{MAIN}.svg)" in once
    assert " ".join(once.split()).count(made_by(run)) == 1
    assert markdown(run) not in once
    assert markdown(run) in insert(page_with("tables"), run, "README.md")
    assert "no picture" in insert(page_with("picture"), made_up(services=(1,)), "README.md")


@pytest.mark.parametrize("block", ["tables", "picture", "figures", "wins"])
def test_a_page_without_a_whole_pair_of_comments_is_refused(block: str) -> None:
    (begin, end), run = marks(block), made_up(services=(1,), rounds=3)
    for broken in ("nothing", begin, end + begin, page_with(block, block)):
        with pytest.raises(MarkersError, match=r"README\.md"):
            insert(broken, run, "README.md")


def test_a_readmes_lines_are_ratios_to_peers_with_intervals_rounds_and_noise_floor() -> None:
    shown = insert(page_with("figures"), made_up(noise=0.02), "README.md")
    head, _, *lines = [
        [cell.strip() for cell in line.strip("| \n").split(" | ")] for line in shown.splitlines() if line[:1] == "|"
    ]
    assert head[-2:] == ["rounds", "noise floor"]
    assert [line[0].split(",")[0].split(" with ")[0].split(" among ")[0] for line in lines] == [
        "new connections/s to the last of 10", "new connections/s to the last of 30",
        "new connections/s from outside to a pod elsewhere", "packets/s from outside to a pod elsewhere",
        "cold start", "one endpoint changes",
    ]  # fmt: skip
    ratios = lines[1][2:-2]
    assert lines[1][1] == "1"
    assert all(re.fullmatch(r"\**\d+(\.\d+)?\** \(\d+(\.\d+)? to \d+(\.\d+)?\)", ratio) for ratio in ratios), ratios
    assert all(re.fullmatch(r"\**[\d.,]+ m?s\** \(\d+%\)", cell) for cell in lines[4][1:-2]), lines[4]
    assert all(re.fullmatch(r"\d+(\.\d)?%", line[-1]) for line in lines)
    assert "Noise floor, the smallest difference that a line finds" in " ".join(shown.split())


def test_the_readme_says_where_iptables_and_direct_win_first() -> None:
    section = (ROOT / "README.md").read_text().split("\n## Benchmark\n")[1]
    first = " ".join("\n".join(section.strip().splitlines()[:12]).split())
    assert "iptables wins: " in first
    assert "Direct, without any rules, is faster than every mode: " in first


@pytest.mark.parametrize("name", ["README.md", "docs/bench/README.md"])
def test_the_pages_figures_are_those_of_the_committed_run(name: str) -> None:
    """When this fails: hotplane bench report docs/bench/results.json -o docs/bench --into README.md --into
    docs/bench/README.md"""
    shown, directory = (ROOT / name).read_text(), "docs/bench" if name == "README.md" else "."
    assert insert(shown, read(ROOT / "docs/bench/results.json"), name, directory) == shown


def test_the_readmes_picture_is_that_of_the_committed_run_and_has_both_schemes() -> None:
    drawn = charts(analyse(read(ROOT / "docs/bench/results.json")))[MAIN]
    picture = (ROOT / f"docs/bench/{MAIN}.svg").read_text()
    assert picture == alone(drawn)
    assert "@media (prefers-color-scheme: dark)" in picture
    assert 'class="paper"' in picture
    assert ElementTree.fromstring(picture).findall(f"{SVG}rect")[0].attrib["width"] == "100%"


def test_direct_is_drawn_on_top_and_names_at_the_ends_of_lines_do_not_overlap() -> None:
    marks_at = {1.0: Mark(10.0, 9.0, 11.0, "a"), 100.0: Mark(10.0, 9.0, 11.0, "b")}
    modes = ("direct", "conntrack", "iptables", "nftables", "ebpf-connect", "ebpf-tc", "ebpf-xdp")
    drawn = lines(dict.fromkeys(modes, marks_at), "t", "u", "x")
    picture = ElementTree.fromstring(drawn)
    order = re.findall(r'class="line ([a-z-]+)"', drawn)
    assert order[-1] == "direct"
    names = {
        text.text: float(text.attrib["y"]) for text in picture.iter(f"{SVG}text") if text.attrib["class"] == "name"
    }
    assert set(names) == set(modes)
    heights = sorted(names.values())
    assert min(above - below for below, above in itertools.pairwise(heights)) >= 16
    frame = [float(value) for value in picture.attrib["viewBox"].split()]
    assert 0 < heights[0] < heights[-1] < frame[3]


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
    own = {name for name, mode in MODES.items() if not mode.is_peer}
    assert set(MARKERS) == own
    assert len(set(MARKERS.values())) == len(MARKERS)
    light, dark = style().split("prefers-color-scheme")
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+);", scheme))
        assert own <= set(colours)
        assert len(set(colours.values())) == len(colours)
