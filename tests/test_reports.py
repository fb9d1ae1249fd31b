"""Reports: every experiment at every state of completion, as a self-contained HTML file and as Markdown."""

import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import cells
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from gi_jax import cli
from gi_jax.checks import InputError
from gi_jax.experiments import catalogue, published
from gi_jax.experiments.catalogue import SCALES, in_words, placed
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.store import Store
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.reports import html, markdown, picture
from gi_jax.reports.experiments import BUILDERS, deviations, report
from gi_jax.reports.experiments.found import Found, first, select, values
from gi_jax.reports.experiments.gather import _found
from gi_jax.reports.experiments.names import defense_name, family, parameters
from gi_jax.reports.experiments.provenance import attack_command
from gi_jax.reports.experiments.table1 import granted
from gi_jax.reports.experiments.tradeoff import _front
from gi_jax.reports.page import (
    NOT_RUN,
    Cell,
    Code,
    Column,
    Details,
    Notes,
    Page,
    PictureGrid,
    Plot,
    Section,
    Table,
    Text,
    Tile,
    written,
)
from gi_jax.reports.raster import png_of
from gi_jax.reports.short import fell_short
from gi_jax.reports.terminal import print_runs
from gi_jax.words import counted

EMPTY_ELEMENTS = {"meta", "img", "br"}
AWKWARD = 'a <b> & "c" | d_e *f*'


class Reader(HTMLParser):
    """Tags in balance, addresses that stay inside, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.words, self.tags = [], [], [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.sources += [attributes["src"]] if "src" in attributes else []
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def page_of_everything():
    """A page with every kind of block and awkward characters in every text."""
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    image = np.zeros((4, 4, 3), np.uint8)
    blocks = (
        Text(AWKWARD),
        Notes((AWKWARD, "two")),
        Code(AWKWARD),
        Table(
            (Column(AWKWARD), Column("x", "{:.2f}", AWKWARD), Column("y", "{:+.1f}", AWKWARD)),
            ((AWKWARD, 1.0, None), ("z", Cell(2.0, AWKWARD, marked=True), "-")),
            AWKWARD,
        ),
        PictureGrid((AWKWARD, "q"), ("1", "2"), ((Tile(image, AWKWARD), None), (None, Tile(image[..., :1]))), AWKWARD),
        Plot(figure, AWKWARD, AWKWARD),
        Details(AWKWARD, (Text(AWKWARD), Details("inner", (Text("deep"),)))),
    )
    return Page(AWKWARD, (AWKWARD,), (Section(AWKWARD, blocks), Section("end", ())))


def check_html(text):
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    read = Reader(text)
    assert not read.tags & {"script", "link", "iframe"}
    assert all(source.startswith("data:image/png;base64,") for source in read.sources)
    assert all(link.startswith("#") and link[1:] in read.ids for link in read.links)
    return read


def check_markdown(text, files):
    width = None
    for line in text.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        count = len(re.findall(r"(?<!\\)\|", line))
        assert width in (None, count), line
        width = count
    assert set(re.findall(r"\]\(pictures/(\w+\.png)\)", text)) == set(files)


def tables(page, heading):
    """The tables of a section."""
    (section,) = (section for section in page.sections if section.heading == heading)
    return [block for block in section.blocks if isinstance(block, Table)]


def row_of(table, name):
    """The values of a row by full heading."""
    (row,) = (row for row in table.rows if row[0].value == name)
    return {column.full: cell.value for column, cell in zip(table.columns, row, strict=True)}


def papers_block(result):
    """What the paper's decoder made of recovered encodings."""
    return next(b for b in result["decoded"] if (b["decoder"], b["encodings"]) == ("paper", "recovered"))


def test_html_holds_every_block_and_escapes():
    rendered = html.render(page_of_everything())
    read = check_html(rendered)
    assert '<div class="scroll"><img class="plot"' in rendered  # wide plots scroll on narrow screens, as tables do
    text = "".join(read.words)
    assert text.count(AWKWARD) >= 15 and "deep" in text and NOT_RUN in text
    assert len(read.sources) == 3


def test_markdown_holds_every_block_and_escapes(tmp_path):
    page = page_of_everything()
    text, files = markdown.render(page)
    check_markdown(text, files)
    assert "<b>" not in text.replace("\\<b\\>", "").replace(f"```\n{AWKWARD}\n```", "")
    markdown.write(page, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == set(files)


def test_pages_are_utf8_in_every_locale(tmp_path):
    script = """if True:
        import pathlib
        from gi_jax.reports import markdown, page
        markdown.write(page.Page("\\xb1", (), ()), pathlib.Path("page.md"))
    """
    plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=plain, check=True)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == "# \xb1\n"


def test_pictures_that_no_page_shows_any_more_are_removed(tmp_path):
    def shows(*shades):
        tiles = tuple(Tile(np.full((4, 4, 3), shade, np.uint8)) for shade in shades)
        return Page("p", (), (Section("s", (PictureGrid(("a",), ("1",) * len(tiles), (tiles,)),)),))

    def there():
        return {path.name for path in (tmp_path / "pictures").iterdir()}

    markdown.write(shows(1, 2, 3), tmp_path / "page.md")
    markdown.write(shows(2), tmp_path / "other.md")
    (tmp_path / "pictures" / "mine.png").write_bytes(b"")
    markdown.write(shows(3), tmp_path / "page.md")
    assert there() == {"mine.png", *markdown.render(shows(2, 3))[1]}
    markdown.write(Page("p", (), ()), tmp_path / "page.md")
    assert there() == {"mine.png", *markdown.render(shows(2))[1]}


def test_pictures_keep_their_pixels():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_of(image)))), image)


@pytest.mark.parametrize(
    "form, value, text",
    [("{:+.2f}", -0.001, "+0.00"), ("{:+.2f}", -0.01, "-0.01"), ("{:.1f}", None, NOT_RUN), (None, "-", "-")],
)
def test_how_cells_are_written(form, value, text):
    assert written(Column("x", form), Cell(value)) == text


def test_tables_and_tiles_refuse_what_does_not_fit():
    with pytest.raises(InputError, match="row 1 of a table has 1 cells"):
        Table((Column("a"), Column("b")), (("x", "y"), ("z",)))
    for image in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(InputError, match="expected uint8"):
            Tile(image)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("state", [cells.full, cells.partial, cells.empty, lambda name: []])
def test_every_experiment_at_every_state(name, state):
    found = state(name)
    page = report(name, "title", "about", found, "small")
    assert page.sections[-1].heading == "How these numbers were made"
    words = " ".join(block.text for section in page.sections for block in section.blocks if isinstance(block, Text))
    assert "What came out" in words or name == "table3"
    assert "nan" not in words and "None" not in words
    ran = sum(one.row is not None for one in found)
    assert f"{ran} of {counted(len(found), 'cell')} run" in page.lead[1]


@pytest.mark.parametrize("name", BUILDERS)
def test_html_of_every_experiment_is_self_contained(name):
    read = check_html(html.render(report(name, "title", "about", cells.full(name), "small")))
    assert "nan" not in "".join(read.words).split()


@pytest.mark.parametrize("name", BUILDERS)
def test_markdown_of_every_experiment_has_even_tables(name):
    check_markdown(*markdown.render(report(name, "title", "about", cells.partial(name), "small")))


def test_unknown_experiments_are_refused():
    with pytest.raises(InputError, match="did you mean 'table2'"):
        report("tabel2", "", "", [], "small")


def differing(page):
    """What the first section says that is not as in the paper."""
    assert page.sections[0].heading == "Not as in the paper"
    return "; ".join(page.sections[0].blocks[0].items)


UTILITY = ("test accuracy, %", "training time, times that without a defense")


def test_what_is_not_as_in_the_paper_is_said_first():
    found = cells.full("table2")
    said = differing(report("table2", "", "", found, "small"))
    assert "400 iterations, not 10,000" in said and "running statistics" not in said
    for one in found:
        if one.where["what"] == "attack":
            one.row["spec"] |= {"client_bn": "running", "data": "photos"}
    page = report("table2", "", "", found, "smoke")
    assert "an easier case" in differing(page) and "photos, not cifar10" in differing(page)
    row = row_of(tables(page, "Leakage at batch size 16")[0], defense_name("prune:p=0.9"))
    assert "average LPIPS: difference" not in row  # nothing is compared with the paper's numbers
    for one in found:
        if one.where["what"] == "training":
            one.row["spec"] |= {"model": "convnet"}
    table = tables(report("table2", "", "", found, "smoke"), "Utility: accuracy and time")[0]
    assert not {f"{of}: difference" for of in UTILITY} & row_of(table, defense_name("prune:p=0.9")).keys()
    assert report("table3", "", "", [], "smoke").sections[0].heading == "What is asked"


def test_table2_compares_by_the_published_protocol():
    found = cells.full("table2")
    page = report("table2", "", "", found, "small")
    compared = tables(page, "Leakage at batch size 16")[0]
    for column in ("prune:p=0.9", "intra_instahide:k=4"):
        known = published.table2().lpips[column, 16]
        result = first(found, what="attack", column=column, batch_size=16).row["result"]
        block = papers_block(result) if "decoded" in result else result
        ours = block["reference_summary"]["lpips_vgg"]
        row = row_of(compared, defense_name(column))
        for field, group in (("mean", "average"), ("best", "best"), ("std", "std of")):
            prefix = f"{group} LPIPS"
            assert row[f"{prefix}: published"] == getattr(known, field)
            assert row[f"{prefix}: ours"] == ours[field]
            assert row[f"{prefix}: difference"] == pytest.approx(ours[field] - getattr(known, field))


def test_attacks_that_fell_short_are_counted_by_updates():
    rows = [dict(batch=0, loss=2.0, loss_at_truth=1.0)] * 3 + [
        dict(batch=1, loss=1.0, loss_at_truth=1.0),
        dict(batch=2, loss=None, loss_at_truth=1.0),
        dict(batch=3, loss=9.0),
    ]
    assert str(fell_short(rows)) == "1 of 2"
    assert fell_short(rows[4:]) is None and fell_short([]) is None


@pytest.mark.parametrize("truth, said", [(0.5, True), (1.0, False), (None, False)])
def test_a_terminal_names_the_runs_that_fell_short(truth, said):
    console = Console(width=200, record=True)
    summary = {"psnr": {"mean": 20.0, "best": 30.0, "failed": 0}}
    images = [{"batch": 0, "loss": 1.0} | ({} if truth is None else {"loss_at_truth": truth})]
    run = {"defense": "none", "labels": {"from": "known"}, "summary": summary, "images": images}
    print_runs(console, [run | {"timing": {"image_iterations_per_second": 9.0}}])
    assert ("fell short" in (text := console.export_text())) == said
    assert not said or "none 1 of 1" in text


def test_table2_says_how_many_attacks_fell_short():
    found = cells.full("table2")
    heading = "Leakage at batch size 16"
    own = tables(report("table2", "", "", found, "small"), heading)[1]
    assert "fell short" not in [column.heading for column in own.columns] and "Fell short" not in own.caption
    one = first(found, what="attack", column="prune:p=0.9", batch_size=16)
    for number, row in enumerate(one.row["result"]["images"]):
        row |= {"batch": number, "loss": 1.0, "loss_at_truth": 0.5 + number}
    own = tables(report("table2", "", "", found, "small"), heading)[1]
    count = len(one.row["result"]["images"])
    assert row_of(own, defense_name("prune:p=0.9"))["fell short"] == f"1 of {count}"
    assert row_of(own, defense_name("none"))["fell short"] == "-" and "Fell short" in own.caption


@pytest.mark.parametrize(
    "defense, name",
    [
        ("none", "no defense"),
        ("qsgd:levels=4,bucket=8", "qsgd\nlevels=4,bucket=8"),
        ("dpsgd:clip=1,sigma=0.5,q=0.01,steps=9", "dpsgd\nclip=1,\nsigma=0.5,\nq=0.01,\nsteps=9"),
        ("mixup:k=4 + prune:p=0.9", "mixup\nk=4\n+ prune:p=0.9"),
    ],
)
def test_long_names_of_rows_end_at_commas(defense, name):
    assert picture._row_name(defense) == name


@pytest.mark.parametrize("count, columns, bands", [(1, 1, 1), (8, 8, 1), (9, 5, 2), (16, 8, 2), (20, 8, 2)])
def test_many_pictures_are_shown_in_several_rows(count, columns, bands, tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (2, count, 3))
    rows = [picture.Row("a", colors[0][:, None, None] / 255), picture.Row("b", colors[1][:-1, None, None] / 255)]
    picture._draw_rows(tmp_path / "found.png", rows, "note")
    with Image.open(tmp_path / "found.png") as image:
        assert image.size == (int(110 * (1.35 + 1.35 * columns)), int(110 * (1.6 * 2 * bands + 0.1)))
        seen = {color for number, color in image.convert("RGB").getcolors(10**6) if number > 1000}
    assert {tuple(map(int, color)) for color in [*colors[0][:16], *colors[1][: min(count - 1, 16)]]} <= seen


def scored(column, mean, std=0.02, count=10, decoders=()):
    """A cell of Table 2 of such LPIPS by this library's scoring; of encoded pictures by decoder."""
    one = cells.attack(0, {"what": "attack", "column": column, "batch_size": 1}, column)
    summary = {"mean": mean, "best": mean, "std": std, "count": count, "failed": 0}
    one.row["result"]["summary"]["lpips_vgg"] = summary
    for block in one.row["result"].get("decoded", ()):
        block["summary"]["lpips_vgg"] = summary | {"mean": dict(decoders)[block["decoder"]]}
    return one


NONE, PRUNED, MORE = scored("none", 0.1), scored("prune:p=0.9", 0.4), scored("prune:p=0.99", 0.66)
HIDDEN = scored("intra_instahide:k=4", None, decoders=(("paper", 0.7), ("sign-aware", 0.43)))
LEAST = "least leaks under pruning p = 0.99 (0.66)"


@pytest.mark.parametrize(
    "found, marked, words",
    [
        ([NONE, PRUNED, MORE, HIDDEN], ["prune:p=0.99"], f"{LEAST}."),  # not that of the paper's decoder
        (
            [NONE, PRUNED, MORE, scored("prune:p=0.999", 0.65)],
            ["prune:p=0.99", "prune:p=0.999"],
            f"{LEAST}; not told apart from it: pruning p = 0.999 (0.65).",
        ),
        ([NONE, PRUNED, MORE, scored("prune:p=0.999", 0.64)], ["prune:p=0.99"], f"{LEAST}."),
        (
            # 0.036 lies between twice the standard errors from n - 1 and from n of three pictures, 0.040 and 0.033.
            [NONE, PRUNED, scored("prune:p=0.99", 0.66, count=3), scored("prune:p=0.999", 0.624, count=3)],
            ["prune:p=0.99", "prune:p=0.999"],
            f"{LEAST}; not told apart from it: pruning p = 0.999 (0.62).",
        ),
        ([MORE, PRUNED, scored("prune:p=0.999", 0.1, count=1)], ["prune:p=0.99", "prune:p=0.999"], LEAST),
        ([NONE, PRUNED], [], "1 defense was scored: too few"),
        ([NONE, PRUNED, MORE], ["prune:p=0.99"], LEAST),  # all of the scale
        ([NONE, PRUNED, MORE, Found(HIDDEN.where, None)], [], "2 defenses were scored: too few"),
    ],
)
def test_least_leaks_by_our_scoring_and_the_strongest_decoder_where_it_is_told_apart(found, marked, words):
    page = report("table2", "", "", found, "small")
    compared, own, *_ = tables(page, "Leakage at batch size 1")
    assert [row[0].value for row in own.rows if any(cell.marked for cell in row)] == [*map(defense_name, marked)]
    assert not any(cell.marked for row in compared.rows for cell in row)
    (section,) = (section for section in page.sections if section.heading == "Leakage at batch size 1")
    assert words in section.blocks[0].text
    assert words in report("figure3", "", "", found, "small").sections[-2].blocks[0].text


def test_what_a_scale_leaves_out_is_not_called_missing():
    for name in ("table2", "figure3", "tradeoff"):
        found = [Found(one.where, None) for one in placed(name, "smoke")]
        found[0] = cells.attack(0, found[0].where)
        page = report(name, "", "", found, "smoke")
        for section in page.sections:
            for block in section.blocks:
                if isinstance(block, Table) and block.columns[0].heading == "defense":
                    assert not {defense_name("prune:p=0.5"), defense_name("mixup:k=4")} & {
                        r[0].value for r in block.rows
                    }
                    assert not any({row[n].value for row in block.rows} == {"-"} for n in range(len(block.columns)))
        words = [block.text for section in page.sections for block in section.blocks if isinstance(block, Text)]
        assert any("Not in this scale: pruning p = 0.5; " in text for text in words)
        assert NOT_RUN in html.render(page) or name == "figure3"


def test_table2_accuracy_is_the_mean_over_seeds():
    where = {"what": "training", "column": "none"}
    found = [cells.training(seed, where | {"seed": seed}, accuracy) for seed, accuracy in enumerate((0.9, 0.92))]
    found.append(Found({"what": "training", "column": "prune:p=0.5", "seed": 0}, None))
    table = tables(report("table2", "", "", found, "small"), "Utility: accuracy and time")[0]
    row = row_of(table, "no defense")
    assert row["test accuracy, %: ours"] == pytest.approx(91)
    assert row["test accuracy, %: difference"] == pytest.approx(91 - published.table2().test_accuracy["none"])
    assert table.rows[0][2].note == "± 1.41"
    assert row_of(table, "pruning p = 0.5")["test accuracy, %: ours"] is None
    time = "training time, times that without a defense: ours"
    assert row[time] == 1 and row_of(table, "pruning p = 0.5")[time] is None


def test_seeds_that_were_timed_once_have_no_spread_and_those_that_diverged_no_accuracy():
    where = {"what": "training", "column": "prune:p=0.9"}
    found = [cells.training(seed, where | {"seed": seed}, 0.9) for seed in (0, 3, 6)]
    found[2].row["result"], found[2].row["timing"] = {"test_accuracy": None, "diverged": 7}, {}
    table = tables(report("table2", "", "", found, "small"), "Utility: accuracy and time")[0]
    (row,) = (row for row in table.rows if row[0].value == "pruning p = 0.9")
    assert row[2].value == pytest.approx(90) and row[5].value == 1.1 and row[5].note == ""
    assert row[-1].value == 2 and row[-1].note == "1 diverged"


@pytest.mark.parametrize("others", [[], [cells.training(3, {"what": "training", "column": "none", "seed": 0}, 0.9)]])
def test_trainings_that_all_diverged_are_not_called_missing(others):
    one = cells.training(0, {"what": "training", "column": "prune:p=0.9", "seed": 0}, None)
    one.row["result"], one.row["timing"] = {"test_accuracy": None, "diverged": 7}, {}
    attacked = cells.attack(0, {"what": "attack", "column": "prune:p=0.9", "batch_size": 1})
    found = [attacked, one, *others]
    page = report("table2", "", "", found, "small")
    row = row_of(tables(page, "Utility: accuracy and time")[0], "pruning p = 0.9")
    assert row["test accuracy, %: ours"] == "diverged" == row[f"{UTILITY[1]}: ours"]
    assert "no accuracy of a defense" in page.sections[2].blocks[0].text
    row = row_of(tables(report("tradeoff", "", "", found, "small"), "Batch size 1")[0], "pruning p = 0.9")
    assert row["accuracy, %: ours"] == "diverged"


def test_what_was_not_run_is_never_a_number():
    for table in tables(report("table2", "", "", [], "small"), "Leakage at batch size 1"):
        ours = [
            cell
            for row in table.rows
            for column, cell in zip(table.columns, row, strict=True)
            if column.heading == "ours"
        ]
        assert ours and all(cell.value is None for cell in ours)


def test_a_switch_compares_with_the_base():
    table = tables(report("protocol", "", "", cells.full("protocol"), "small"), "Each switch")[0]
    row, base = row_of(table, "box"), row_of(table, "all")
    for scoring in ("LPIPS, this library's scoring", "LPIPS, the paper's scoring"):
        assert row[f"{scoring}: reference"] == base[f"{scoring}: reference"]
        change = row[f"{scoring}: corrected"] - row[f"{scoring}: reference"]
        assert row[f"{scoring}: difference"] == pytest.approx(change)


def test_where_another_switch_is_corrected_too_is_said():
    specs = {tuple(one.where.values()): one.cell.spec for one in catalogue.placed("protocol", "paper")}
    others = {name: spec for name, spec in specs.items() if name[0] not in ("all", "decode")}
    mixed = {name for name, spec in specs.items() if getattr(spec, "mix_index", "reference") == "correct"}
    boxed = {name for name, spec in others.items() if getattr(spec, "box", "reference") != "reference"}
    assert mixed == {("mix_index", "corrected"), ("decode", "both")} and boxed == {("box", "corrected")}
    said = report("protocol", "", "", [], "paper").sections[0].blocks[0].text
    assert "but in the rows all and decode; in the latter mix_index is corrected" in said


def test_all_at_once_mends_the_scoring_too():
    found = cells.full("protocol")
    corrected = next(one for one in found if one.where == {"switch": "all", "value": "corrected"})
    mended = corrected.row["result"]["mended_summaries"]["lpips_range"]
    mended["lpips_vgg"] = mended["lpips_vgg"] | {"mean": 0.123}
    row = row_of(tables(report("protocol", "", "", found, "small"), "Each switch")[0], "all")
    assert row["LPIPS, the paper's scoring: corrected"] == 0.123
    assert row["LPIPS, this library's scoring: corrected"] == corrected.row["result"]["summary"]["lpips_vgg"]["mean"]
    for scale in catalogue.SCALES:  # in batches of one picture there is no other to match with
        placed = [one for one in catalogue.placed("protocol", scale) if one.where["switch"] == "all"]
        assert [one.cell.spec.batch_size for one in placed] == [1, 1]


def test_a_switch_is_not_compared_with_another_ones_reference():
    found = cells.full("protocol")
    table = tables(report("protocol", "", "", found, "small"), "Each switch")[0]
    compared, base = "LPIPS, the paper's scoring: reference", row_of(table, "all")
    assert row_of(table, "match")[compared] != base[compared] == row_of(table, "lpips_range")[compared]
    own = Found({"switch": "mask_pruned", "value": "reference"}, None)  # which did not run
    table = tables(report("protocol", "", "", [*found, own], "small"), "Each switch")[0]
    assert row_of(table, "mask_pruned")[compared] is None
    assert row_of(table, "mask_pruned")["LPIPS, the paper's scoring: difference"] == "-"


def test_the_order_of_the_paper_is_that_of_its_small_pictures():
    page = report("figure1", "", "", cells.full("figure1"), "small")
    words = {
        section.heading: " ".join(block.text for block in section.blocks if isinstance(block, Text))
        for section in page.sections
    }
    assert "this is the order of the paper" in words["Panel cifar10"]
    assert "order of the paper" not in words["Panel large"] and "embedded photograph" in words["Panel large"]


def test_alpha_bn_marks_the_strongest_attack():
    found = cells.full("alpha_bn")
    table = tables(report("alpha_bn", "", "", found, "small"), "Statistics: exact")[0]
    marked = [cell.value for row in table.rows for cell in row if cell.marked]
    assert marked == [min(one.row["result"]["summary"]["lpips_vgg"]["mean"] for one in select(found, bn="exact"))]


def failing(one, failed, mean=0.2):
    """The same cell where so many pictures failed, all of them without a mean, by every scoring."""
    result = one.row["result"]
    known = {"mean": mean, "best": mean, "std": None if mean is None else 0.0, "count": 0 if mean is None else 1}
    for block in (result, *result.get("decoded", ())):
        for summaries in (block["summary"], block.get("reference_summary", {})):
            summaries["lpips_vgg"] = known | {"failed": failed}
    return one


def said(page):
    """All paragraphs of a page."""
    return " ".join(block.text for section in page.sections for block in section.blocks if isinstance(block, Text))


@pytest.mark.parametrize("name", ["alpha_bn", "figure1", "figure2", "protocol", "table1", "table2"])
def test_failed_pictures_are_told_beside_the_averages_without_them(name):
    cell = next(one for one in cells.full(name) if one.row["kind"] == "attack")
    text, _ = markdown.render(report(name, "", "", [failing(cell, 49)], "small"))
    assert "49 failed" in text


def test_the_failed_of_one_position_of_a_switch_are_told():
    found = cells.full("protocol")
    failing(next(one for one in found if one.where == {"switch": "all", "value": "reference"}), 49)
    table = tables(report("protocol", "", "", found, "small"), "Each switch")[0]
    (row,) = (row for row in table.rows if row[0].value == "box")
    assert row[1].note == "± 0.00, 49 failed" and "failed" not in row[2].note
    assert (row[-1].value, row[-1].note) == (1, "49 failed")


def test_the_strongest_pair_is_one_without_failed_pictures():
    found = select(cells.full("alpha_bn"), bn="exact")
    failing(found[0], 49, mean=0.01)
    failing(found[1], 50, mean=None)
    page = report("alpha_bn", "", "", found, "small")
    table = tables(page, "Statistics: exact")[0]
    marked = [cell.value for row in table.rows for cell in row if cell.marked]
    assert marked == [min(one.row["result"]["summary"]["lpips_vgg"]["mean"] for one in found[2:])]
    notes = [cell.note for row in table.rows for cell in row]
    assert "best 0.01, n 1, 49 failed" in notes and "50 failed" in notes
    assert "Not compared: 2 pairs with failed pictures." in said(page)


def test_where_every_pair_has_failed_pictures_the_strongest_is_named_with_them():
    found = [failing(one, 49) for one in select(cells.full("alpha_bn"), bn="exact")]
    assert "(average LPIPS 0.20, 49 failed)" in said(report("alpha_bn", "", "", found, "small"))


@pytest.mark.parametrize(
    ("name", "ran", "diverged", "words"),
    [
        ("figure1", {"bn": "exact"}, {"bn": "proxy"}, "; infer not run, proxy diverged."),
        (
            "figure1",
            {"bn": "none"},
            {"bn": "exact"},
            "no average LPIPS to compare yet: exact diverged, infer not run, proxy not run.",
        ),
        ("figure2", {"labels": "known"}, {"labels": "auto"}, "yet: labels optimize not run, labels auto diverged."),
        (
            "protocol",
            {"switch": "box"},
            {"value": "reference"},
            "has averages of all pictures in both positions yet. Not compared, as pictures failed in one",
        ),
        (
            "table1",
            {"labels": "known"},
            {"labels": "optimize"},
            "Not compared, as pictures failed: dlg with statistics network without BatchNorm",
        ),
    ],
)
def test_sentences_do_not_call_what_diverged_not_run(name, ran, diverged, words):
    attacks = [one for one in cells.full(name) if one.row["kind"] == "attack"]
    found = [*select(attacks, **ran)[:1], failing(first(attacks, **diverged), 6, mean=None)]
    page = said(report(name, "", "", found, "small"))
    assert words in page and "was run" not in page and "nothing was run" not in page


def test_what_diverged_is_named_beside_what_is_compared():
    found = cells.full("figure2")
    failing(found[-1], 6, mean=None)
    assert "; labels auto diverged. The paper" in said(report("figure2", "", "", found, "small"))
    found = cells.full("protocol")
    failing(next(one for one in found if one.where["switch"] == "bn_var"), 6, mean=None)
    assert "Not compared, as pictures failed in one position or both: bn_var." in said(
        report("protocol", "", "", found, "small")
    )


@pytest.mark.parametrize(
    ("name", "where", "words"),
    [
        ("figure1", {"bn": "exact"}, "; exact not compared (2 failed)."),
        ("figure2", {"labels": "auto"}, "; labels auto not compared (2 failed)."),
        ("protocol", {"switch": "bn_var"}, "Not compared, as pictures failed in one position or both: bn_var."),
        ("table1", {"attack": "grad_inversion", "statistics": "unknown"}, "Not compared, as pictures failed: grad_inv"),
        ("table2", {"column": "prune:p=0.9", "batch_size": 1}, "Not compared, as pictures failed: pruning p = 0.9."),
        ("figure3", {"column": "prune:p=0.9"}, "Not compared, as pictures failed: pruning p = 0.9."),
        ("tradeoff", {"column": "prune:p=0.9"}, "Not compared, as pictures failed: pruning p = 0.9."),
    ],
)
def test_no_sentence_compares_averages_that_leave_pictures_out(name, where, words):
    found = cells.full(name)
    failing(first([one for one in found if one.row["kind"] == "attack"], **where), 2, mean=0.0)
    page = said(report(name, "", "", found, "small"))
    assert words in page and "0.00" not in page


def test_a_picture_that_failed_is_said_to_under_its_tile():
    one = cells.attack(0, {"what": "attack", "column": "none", "batch_size": 1})
    metrics = one.row["result"]["images"][1]
    metrics |= dict.fromkeys(metrics)
    del one.row["result"]["images"][2]["lpips_vgg"]  # not scored is not failed
    page = report("figure3", "", "", [one], "small")
    (grid,) = (block for section in page.sections for block in section.blocks if isinstance(block, PictureGrid))
    first_caption, failed, unscored = (tile.caption for tile in grid.tiles[1][:3])
    assert float(first_caption) > 0 and (failed, unscored) == ("diverged", "")


def test_our_speed_takes_the_place_of_the_papers():
    table = tables(report("table3", "", "", cells.full("table3"), "small"), "With our measured speed")[0]
    paper, measured, scaled = ([cell.value for cell in row] for row in table.rows)
    assert paper[2] == pytest.approx(0.09)
    assert measured[2] == pytest.approx(16 / 120) and scaled[2] == pytest.approx(128 / 120)
    assert measured[3] == pytest.approx(16 / 120 * 10_000 / 3600)
    assert paper[4] == published.table3().instahide[0].hours


@pytest.mark.parametrize("scale", SCALES)
def test_what_attacks_are_granted_is_what_the_paper_says_of_them(scale):
    found = [Found(placed.where, None) for placed in placed("table1", scale)]
    for name, assumed in published.table1().attacks.items():
        assert granted(found, name) == (assumed.statistics, assumed.labels)


def test_the_front_holds_what_no_other_beats():
    points = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (1.0, 2.0), "d": (3.0, 1.0), "e": (2.0, 2.0)}
    assert _front(points) == ["a", "b", "d", "e"]


def test_grids_show_decoded_pictures_where_there_are_any():
    column = "mixup:k=4"
    one = cells.attack(0, {"what": "attack", "column": column, "batch_size": 1}, column)
    page = report("figure3", "", "", [one], "small")
    (grid,) = (block for section in page.sections for block in section.blocks if isinstance(block, PictureGrid))
    assert grid.rows == ("original", "MixUp k = 4")
    np.testing.assert_array_equal(grid.tiles[1][0].image, one.decoded[0])
    block = papers_block(one.row["result"])
    assert grid.tiles[1][0].caption == f"{block['images'][0]['lpips_vgg']:.2f}"
    page = report("figure3", "", "", [one, Found(one.where | {"column": "none"}, None)], "small")
    (grid,) = (block for section in page.sections for block in section.blocks if isinstance(block, PictureGrid))
    assert "without pictures: no defense." in grid.caption


def test_a_cell_whose_decoded_pictures_are_lost_shows_no_encodings_in_their_place(tmp_path):
    store, names = Store(tmp_path), ("originals", "reconstructions", "decoded", "decoded_originals")
    kept = {name: store.save_pictures(name, np.zeros((2, 4, 4, 3))) for name in names}
    one = cells.attack(0, {"what": "attack", "column": "mixup:k=4", "batch_size": 1}, "mixup:k=4")
    row = one.row | {"pictures": kept | {"count": 2, "decoded_count": 2}}
    assert len(_found(one.where, row, store, True).pictures) == 2
    (tmp_path / kept["decoded"]).unlink()
    assert _found(one.where, row, store, True) == Found(one.where, row)


def test_missing_cells_are_named():
    page = report("protocol", "", "", cells.partial("protocol"), "small")
    (details,) = (block for block in page.sections[-1].blocks if block.title == "What was not run")
    missing = ("all", "box", "mask_pruned")
    assert details.blocks == (Notes(tuple(f"switch {name}, value corrected" for name in missing)),)


def test_a_cell_without_coordinates_is_called_what_it_is():
    page = report("table3", "", "", cells.full("table3"), "small")
    folded = {details.title: details.blocks for details in page.sections[-1].blocks}
    assert folded["Commands"][-1].text.startswith("# attack\ngi-jax attack")
    (row,) = folded["Protocol: settings of every cell"][-1].rows
    assert row[1].value == "attack"
    assert in_words({"what": "attack", "column": "none"}) == "column none"


def test_diverged_is_not_the_same_as_not_run():
    one = cells.attack(0, {"what": "attack", "column": "none", "batch_size": 1})
    failed = dict.fromkeys(("mean", "best", "std")) | {"count": 0, "failed": 6}
    for name in ("summary", "reference_summary"):
        one.row["result"][name]["lpips_vgg"] = failed
    row = row_of(tables(report("table2", "", "", [one], "small"), "Leakage at batch size 1")[0], "no defense")
    assert row["average LPIPS: ours"] == "diverged" and "average LPIPS: difference" not in row


@pytest.mark.parametrize(
    "spec",
    [
        AttackSpec(),
        AttackSpec(steps=10, labels=("known", "auto"), defenses=("none", "mixup:k=4 + prune:p=0.9"), encodings=2),
        AttackSpec(model="resnet18", client_bn="batch", bn="infer", bn_prior=0.01, tv=0.05, learning_rate=0.1, seed=3),
        AttackSpec(model="lenet", attack="dlg", labels="known"),
        AttackSpec(model="lenet", attack="dlg"),
        AttackSpec(batch_size=4, local_steps=4, local_batch_size=2, local_rate=0.1, num_batches=1),
    ],
)
def test_the_printed_command_gives_the_specification_again(spec, monkeypatch):
    from gi_jax.cli import attack as command

    seen = []
    monkeypatch.setattr(
        command.terminal, "finished", lambda out, fingerprint, *_, **__: seen.append(fingerprint) or {"runs": []}
    )
    monkeypatch.setattr(command, "_show", lambda *_: 0)
    words = shlex.split(attack_command(dataclasses.asdict(spec), reference_scoring=True))
    assert words[0] == "gi-jax" and "--reference-scoring" in words
    assert cli.main(words[1:]) == 0
    assert seen == [spec.fingerprint]


def test_cells_are_found_by_their_coordinates():
    found = [Found({"a": 1, "b": 1}, {}), Found({"a": 1, "b": 2}, None), Found({"a": 2, "b": 2}, {})]
    assert select(found, a=1) == [found[0]] and first(found, b=2) == found[2] and first(found, a=3) is None
    assert values(found, "b") == [1, 2] and values(found, "c") == []


def test_names():
    column = "mixup:k=4 + prune:p=0.9"
    assert defense_name(column) == "MixUp k = 4 + pruning p = 0.9"
    assert parameters(column) == "k=4, p=0.9" and family(column) == "MixUp + pruning"
    assert defense_name("dpsgd:clip=1,sigma=0.5") == "dpsgd:clip=1,sigma=0.5"


def as_published(count, column="none", network="none", epochs=2.0, pictures=None, **changes):
    """An attack of the published length on so many pictures, and on a network that was trained under a defense."""
    found = cells.attack(0, {"what": "attack", "column": column, "batch_size": 1}, column)
    spec = found.row["spec"] | {"steps": 10_000, "box": "reference"} | changes
    training = TrainSpec(data="cifar10", model="resnet18", epochs=epochs, defense=network, train_pictures=pictures)
    trained = dataclasses.asdict(training)
    images = found.row["result"]["images"][:1] * count * spec["encodings"]
    row = found.row | {"spec": spec, "network": trained, "result": found.row["result"] | {"images": images}}
    return found._replace(row=row)


@pytest.mark.parametrize(
    "name, found, differs",
    [
        ("table2", as_published(50), []),
        ("figure2", as_published(16), []),
        ("figure1", as_published(16), ["the paper tunes it"]),
        ("figure1", as_published(16)._replace(where={"panel": "large"}), []),
        ("table2", as_published(16), ["16 pictures, not 50"]),
        ("table2", as_published(50, steps=200), ["200 iterations, not 10,000"]),
        ("table2", as_published(50, epochs=1.0), ["for 1 epoch, not 2 of 49,000"]),
        ("table2", as_published(50, pictures=10_000), ["for 2 epochs of 10,000 pictures, not 2 of 49,000"]),
        ("table2", as_published(50, attack="modern"), ["the attack is modern, not gradient_inversion_evaluation"]),
        ("table2", as_published(50, learning_rate=1.0), ["its rate is 1, not 0.1"]),
        ("table2", as_published(50, "mixup:k=4", "mixup:k=4", encodings=20, tv=0.01), ["weighs 0.01, not 0.1"]),
        ("alpha_bn", as_published(50, tv=0.5), []),
        ("table2", as_published(50, box="valid"), ["kept among valid pictures"]),
        ("table2", as_published(50, "mixup:k=4", "mixup:k=4", encodings=20), []),
        ("table2", as_published(50, "mixup:k=4", "mixup:k=4", encodings=2), ["encoded in 2 epochs, not 20"]),
        ("table2", as_published(50, "mixup:k=4", encodings=20), ["not trained on such"]),
        ("table2", cells.training(1, {"seed": 0, "column": "none"}, 0.9), ["1 training of each kind, not 5"]),
    ],
)
def test_what_is_not_as_in_the_paper_is_said_and_nothing_else(name, found, differs):
    said = deviations.sentences(name, [found])
    assert len(said) == len(differs) and all(one in line for one, line in zip(differs, said, strict=True)), said


def test_accuracies_of_another_training_are_not_held_against_the_published_ones():
    published_one = cells.training(1, {"seed": 0, "column": "none"}, 0.9)
    short = dict(recipe="plain", epochs=2.0, train_pictures=10_000, model="convnet")
    own = published_one._replace(row=published_one.row | {"spec": published_one.row["spec"] | short})
    assert deviations.accuracies_comparable([published_one]) and not deviations.accuracies_comparable([own])
    said = " ".join(deviations.sentences("table2", [own]))
    assert "convnet, not resnet18" in said and "10,000 pictures" in said and "2 epochs" in said


COPY = "class folders of JPEG pictures: a lossy copy of CIFAR-10"


@pytest.mark.parametrize("what, name", [("attack", "threat_model"), ("training", "note")])
def test_a_lossy_copy_of_the_data_is_said_and_nothing_on_it_is_compared(what, name):
    found = [cells.attack(0, {"what": "attack", "column": "none", "batch_size": 1})]
    found.append(cells.training(1, {"what": "training", "column": "none", "seed": 0}, 0.9))
    assert deviations.comparable(found) and deviations.accuracies_comparable(found)
    (one,) = select(found, what=what)
    one.row["result"][name] = COPY if name == "note" else [*one.row["result"][name], COPY]
    (said,) = (line for line in deviations.sentences("table2", found) if "lossy" in line)
    assert said == f"the pictures are not the published ones: {COPY}"
    assert deviations.comparable(found) == (what != "attack")
    assert deviations.accuracies_comparable(found) == (what != "training")


def test_on_how_many_pictures_accuracies_are_is_said():
    one = cells.training(1, {"what": "training", "column": "none", "seed": 0}, 0.9)
    pages = [report(name, "", "", [one], "small") for name in ("table2", "tradeoff")]
    assert not any("held-out" in html.render(page) for page in pages)  # older rows do not say it
    one.row["spec"]["test_pictures"], one.row["result"]["pictures"] = 1000, {"train": 49_000, "test": 1000}
    assert not deviations.accuracies_comparable([one])
    for name in ("table2", "tradeoff"):
        page = report(name, "", "", [one], "small")
        assert "accuracies are those on 1,000 pictures of the test split only" in differing(page)
        assert "Our accuracies are those on 1,000 held-out pictures." in html.render(page)


def test_copies_of_the_data_that_differ_are_said():
    attacks = [one for one in cells.full("table2") if one.where["what"] == "attack" and one.where["batch_size"] == 16]
    said = []
    for digests in ("aa", "ab"):
        for one, digest in zip(attacks, digests, strict=False):
            one.row["result"]["victims"] = digest
        said.append(any("copies of the data set differ" in line for line in deviations.sentences("table2", attacks)))
    assert said == [False, True]
