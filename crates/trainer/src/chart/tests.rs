//! Whole figures.

use roxmltree::Document;

use super::*;
use crate::digest::Digest;

/// One panel with a mark of each kind but a heat map.
fn everything() -> Figure {
    let panel = Panel::new("everything", Axis::linear("x"), Axis::linear("y"))
        .mark(Mark::band("band", vec![(0.0, 1.0, 2.0), (1.0, 1.5, 2.5)]))
        .mark(Mark::line("line", vec![(0.0, 1.0), (1.0, 2.0)]))
        .mark(Mark::points("points", vec![(0.2, 1.0), (0.6, 2.0)]).labels(["first", "second"]))
        .mark(Mark::error_bars("errors", vec![(0.5, 1.0, 2.0)]))
        .mark(Mark::reference("floor", 0.5))
        .mark(Mark::diagonal("diagonal"));
    let bars = Panel::new("bars", Axis::categories("rule", ["greedy", "top-k", "top-p"]), Axis::linear("share"))
        .mark(Mark::bars("distinct-1", vec![0.2, 0.6, 0.7]))
        .mark(Mark::bars("distinct-2", vec![0.3, 0.8, 0.9]).spread(vec![0.0, 0.05, 0.04]));
    let rows: Vec<Vec<f64>> =
        (0..6).map(|i| (0..6).map(|j| if j > i { 0.0 } else { 1.0 / f64::from(i + 1) }).collect()).collect();
    let tokens = ["Once", "upon", "a", "time", "there", "was"];
    let map = Panel::new("layer 0, head 1", Axis::categories("key", tokens), Axis::categories("query", tokens))
        .mark(Mark::heat_map(rows));
    let sweep = Panel::new("sweep", Axis::log("learning rate"), Axis::log("loss")).marks((0..9).map(|n| {
        let at = |k: f64| 1.0 + f64::from(n) + (k + 3.0).powi(2);
        Mark::line(format!("run {n}"), (-5..0).map(|k| (10f64.powi(k), at(f64::from(k)))).collect())
    }));
    Figure::new(vec![panel, bars, map, sweep]).columns(2).panel_size(600, 420).title("Everything & <more>")
}

/// How many elements of a name have a colour of a mark, as a fill or as a stroke.
fn count(svg: &str, element: &str, color: &str) -> usize {
    let document = Document::parse(svg).unwrap();
    let has =
        |node: &roxmltree::Node<'_, '_>| ["fill", "stroke"].iter().any(|&name| node.attribute(name) == Some(color));
    document.descendants().filter(|node| node.has_tag_name(element) && has(node)).count()
}

fn texts(svg: &str) -> Vec<String> {
    let document = Document::parse(svg).unwrap();
    let texts = document.descendants().filter(|node| node.tag_name().name() == "text");
    texts.map(|node| node.text().unwrap_or_default().trim().to_owned()).collect()
}

fn panel(marks: impl IntoIterator<Item = Mark>) -> Figure {
    Figure::new(vec![Panel::new("title", Axis::linear("x"), Axis::linear("y")).marks(marks)])
}

const BLUE: &str = "#3C36ED";
const VERMILLION: &str = "#A82200";
const BLACK_TEXT: &str = "#1F2328";

#[test]
fn every_mark_is_there_once() {
    let line = |n: u32| Mark::line("", (0..n).map(|x| (f64::from(x), f64::from(x * x))).collect());
    assert_eq!(count(&panel([line(3)]).svg().unwrap(), "polyline", BLUE), 1);
    assert_eq!(count(&panel([line(3)]).svg().unwrap(), "circle", BLUE), 3, "few points are marked");
    assert_eq!(count(&panel([line(40)]).svg().unwrap(), "circle", BLUE), 0);
    assert_eq!(count(&panel([line(1)]).svg().unwrap(), "circle", BLUE), 2, "a line of one point is a point");
    let points = Mark::points("here", vec![(1.0, 2.0), (3.0, 4.0)]).labels(["first", "second"]);
    let svg = panel([points]).svg().unwrap();
    assert_eq!(count(&svg, "circle", BLUE), 3, "and one in the legend");
    assert!(["first", "second", "here", "title", "x", "y"].iter().all(|text| texts(&svg).iter().any(|t| t == text)));

    let axis = Axis::categories("rule", ["greedy", "top-k", "top-p"]);
    let bars = Panel::new("", axis, Axis::linear("share"))
        .mark(Mark::bars("a", vec![0.2, 0.6, 0.7]))
        .mark(Mark::bars("b", vec![0.3, f64::NAN, 0.9]).spread(vec![0.0, 0.1, 0.2]));
    let svg = Figure::new(vec![bars]).svg().unwrap();
    assert_eq!((count(&svg, "rect", BLUE), count(&svg, "rect", VERMILLION)), (3 + 1, 2 + 1));
    assert_eq!(count(&svg, "polyline", BLACK_TEXT), 3, "one error bar, of three lines");

    let svg = panel([Mark::band("", vec![(0.0, 1.0, 2.0), (1.0, 1.5, 2.5)])]).svg().unwrap();
    assert_eq!(count(&svg, "polygon", BLUE), 1);
    let svg = panel([Mark::error_bars("", vec![(0.0, 1.0, 2.0), (1.0, f64::NAN, 2.0)])]).svg().unwrap();
    assert_eq!(count(&svg, "polyline", BLUE), 3);
    let svg = panel([Mark::reference("floor", 0.5)]).svg().unwrap();
    assert!(count(&svg, "polyline", BLUE) > 40 && texts(&svg).contains(&"floor".into()), "dashes");
}

#[test]
fn a_heat_map_has_a_rectangle_for_each_run_of_equal_cells() {
    let heat_map = |rows| {
        Figure::new(vec![
            Panel::new("", Axis::categories("", ["a", "b", "c"]), Axis::categories("", ["d", "e"]))
                .mark(Mark::heat_map(rows)),
        ])
    };
    let cells = |rows: Vec<Vec<f64>>| {
        let svg = heat_map(rows).svg().unwrap();
        // Less the background and the scale.
        Document::parse(&svg).unwrap().descendants().filter(|node| node.has_tag_name("rect")).count()
            - 1
            - theme::HEAT_LEVELS
    };
    assert_eq!(cells(vec![vec![0.0, 0.5, 1.0], vec![0.25, 0.5, 0.75]]), 6);
    assert_eq!(cells(vec![vec![0.0, 0.0, 1.0], vec![f64::NAN, 2.0, 1.0]]), 3, "beyond 1 is 1, and NaN is nothing");
    let error = heat_map(vec![vec![0.0], vec![0.0, 1.0]]).svg().unwrap_err();
    assert!(matches!(error, ChartError::Ragged { row: 1, got: 2, expected: 1 }), "{error}");
}

#[test]
fn rows_of_a_heat_map_go_downwards() {
    let axis = || Axis::categories("", ["first", "second"]);
    let figure =
        Figure::new(vec![Panel::new("", Axis::linear(""), axis()).mark(Mark::heat_map(vec![vec![0.0], vec![1.0]]))]);
    let svg = figure.svg().unwrap();
    let document = Document::parse(&svg).unwrap();
    let y = |text: &str| {
        let node =
            document.descendants().find(|n| n.has_tag_name("text") && n.text().is_some_and(|t| t.trim() == text));
        node.unwrap().attribute("y").unwrap().parse::<f64>().unwrap()
    };
    assert!(y("first") < y("second"));
    let top = document.descendants().filter(|n| n.has_tag_name("rect")).nth(1).unwrap();
    assert_eq!(top.attribute("fill"), Some("#00224E"), "the cell of 0 is drawn first, and is the upper one");
    assert!(top.attribute("y").unwrap().parse::<f64>().unwrap() < y("first"));
}

#[test]
fn what_is_no_number_is_left_out() {
    let line =
        vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 2.0), (4.0, f64::INFINITY), (f64::NAN, 1.0), (5.0, 1.0)];
    let svg = panel([Mark::line("", line)]).svg().unwrap();
    assert_eq!((count(&svg, "polyline", BLUE), count(&svg, "circle", BLUE)), (1, 4 + 2), "two points stand alone");
    let log =
        Panel::new("", Axis::log(""), Axis::log("")).mark(Mark::points("", vec![(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0)]));
    assert_eq!(count(&Figure::new(vec![log]).svg().unwrap(), "circle", BLUE), 1);
}

#[test]
fn what_is_beyond_a_range_is_cut_off() {
    let axes = || (Axis::linear("").range(0.0, 1.0), Axis::linear("").range(0.0, 1.0));
    let (x, y) = axes();
    let beyond = Panel::new("", x, y)
        .mark(Mark::line("", vec![(-1.0, 0.5), (2.0, 0.5)]))
        .mark(Mark::points("", vec![(0.5, 0.5), (0.5, 1.5)]))
        .mark(Mark::bars("", vec![3.0, -2.0, 4.0]))
        .mark(Mark::band("", vec![(-1.0, -5.0, 5.0), (3.0, -5.0, 5.0)]));
    let svg = Figure::new(vec![beyond]).panel_size(400, 300).svg().unwrap();
    assert_eq!((count(&svg, "polyline", BLUE), count(&svg, "rect", VERMILLION)), (1, 1));
    let document = Document::parse(&svg).unwrap();
    for node in document.descendants().filter(|node| node.has_tag_name("polyline") || node.has_tag_name("polygon")) {
        for point in node.attribute("points").unwrap().split_whitespace() {
            let (x, y) = point.split_once(',').unwrap();
            let inside = |value: &str, most: i32| (0..=most).contains(&value.parse::<i32>().unwrap());
            assert!(inside(x, 1600) && inside(y, 1200), "{point}");
        }
    }
}

#[test]
fn without_data_there_is_an_empty_frame_and_without_panels_an_error() {
    for marks in
        [vec![], vec![Mark::line("a", vec![])], vec![Mark::bars("b", vec![f64::NAN])], vec![Mark::heat_map(vec![])]]
    {
        let svg = panel(marks.clone()).svg().unwrap();
        assert!(texts(&svg).contains(&"no data".into()), "{marks:?}");
    }
    assert!(!texts(&panel([Mark::reference("", 1.0)]).svg().unwrap()).contains(&"no data".into()));
    let none = Figure::new(vec![]);
    assert!(matches!(none.svg(), Err(ChartError::Empty)) && matches!(none.png(), Err(ChartError::Empty)));
}

#[test]
fn any_text_is_legible_and_the_document_well_formed() {
    let hostile = "</svg><script>alert(1)</script>&amp;\"'<!-- ]]>\0\x1b[31m\u{fffe}\u{202e}\u{ffff}";
    let shown = "</svg><script>alert(1)</script>&amp;\"'<!-- ]]>\\x00\\x1b[31m\u{fffd}\\u{202e}\u{fffd}";
    let names = [hostile, hostile];
    let all = Panel::new(hostile, Axis::categories(hostile, names), Axis::categories(hostile, names))
        .mark(Mark::points(hostile, vec![(0.0, 0.0)]).labels([hostile]));
    let svg = Figure::new(vec![all]).panel_size(3000, 2000).title(hostile).svg().unwrap();
    assert!(Document::parse(&svg).unwrap().descendants().all(|node| !node.has_tag_name("script")));
    let texts = texts(&svg);
    assert_eq!(texts.iter().filter(|text| *text == shown).count(), 10, "{texts:?}");
    let long = Panel::new("long ".repeat(50_000), Axis::linear("long ".repeat(50_000)), Axis::linear(""));
    assert!(Figure::new(vec![long]).svg().unwrap().len() < 20_000, "a text that has no room is cut");
}

#[test]
fn an_svg_has_a_dark_theme_and_can_stand_in_a_page_beside_others() {
    let svg = everything().svg().unwrap();
    let document = Document::parse(&svg).unwrap();
    let root = document.root_element();
    assert_eq!((root.attribute("class"), root.attribute("width")), (Some("tinygpt-chart"), Some("1200")));
    assert!(svg.contains("<!-- tinygpt chart, format 1 -->"));
    assert!(document.descendants().all(|node| node.attribute("id").is_none()));
    let style = document.descendants().find(|node| node.has_tag_name("style")).and_then(|node| node.text()).unwrap();
    assert!(
        style.contains("@media (prefers-color-scheme: dark)")
            && style.contains("[data-theme=\"dark\"] svg.tinygpt-chart")
    );
    let selectors = style
        .lines()
        .filter_map(|line| line.trim_start_matches("@media (prefers-color-scheme: dark){").split_once('{'));
    assert!(selectors.map(|(selector, _)| selector).all(|selector| selector.contains("svg.tinygpt-chart")));
    // Every colour but those of heat maps has a rule.
    let heat: Vec<String> = (0..theme::HEAT_LEVELS).map(|level| theme::hex(theme::heat(level))).collect();
    for color in document.descendants().flat_map(|node| [node.attribute("fill"), node.attribute("stroke")]).flatten() {
        let themed = style.contains(&format!("[fill=\"{color}\"]")) && style.contains(&format!("[stroke=\"{color}\"]"));
        assert!(color == "none" || themed != heat.iter().any(|heat| heat == color), "{color}");
    }
}

#[test]
fn a_png_has_the_size_of_the_figure_twice_and_its_colours() {
    let figure = panel([Mark::bars("", vec![1.0])]).panel_size(300, 200);
    let bytes = figure.png().unwrap();
    let mut reader = ::png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height, info.color_type), (600, 400, ::png::ColorType::Rgb));
    let share =
        |color: [u8; 3]| pixels.chunks_exact(3).filter(|&pixel| pixel == color).count() as f64 / (600.0 * 400.0);
    assert!(share([0x3C, 0x36, 0xED]) > 0.2, "a bar");
    assert!(share([0xFF, 0xFF, 0xFF]) > 0.3, "a light background");
    let dark = |from: usize, to: usize| {
        pixels[from * 600 * 3..to * 600 * 3].chunks_exact(3).filter(|p| p.iter().all(|&v| v < 80)).count()
    };
    assert!(dark(24, 64) > 100, "letters of the title");
}

#[test]
fn the_same_figure_gives_the_same_bytes() {
    let figure = everything();
    assert_eq!(figure.svg().unwrap(), figure.svg().unwrap());
    assert_eq!(figure.png().unwrap(), figure.png().unwrap());
    // Made anew with what the failing test prints, when charts shall look different.
    let small = panel([Mark::line("a", vec![(0.0, 1.0), (1.0, 2.0)])]).panel_size(200, 160);
    let name = |bytes: &[u8]| format!("{:.16}", Digest::of(bytes));
    let names = (name(small.svg().unwrap().as_bytes()), name(&small.png().unwrap()));
    assert_eq!((names.0.as_str(), names.1.as_str()), ("191e11e93f1517a7", "ff12f7308af96062"));
}

#[test]
fn a_file_is_what_its_name_says() {
    let dir = tempfile::tempdir().unwrap();
    let figure = panel([Mark::bars("", vec![1.0])]);
    for (name, begin) in [("a.svg", &b"<svg "[..]), ("a.SVG", b"<svg "), ("a.png", b"\x89PNG\r\n\x1a\n")] {
        write(&dir.path().join(name), &figure).unwrap();
        assert!(std::fs::read(dir.path().join(name)).unwrap().starts_with(begin), "{name}");
    }
    for name in ["a.pdf", "svg", ".svg", "a.svg.gz"] {
        let error = write(&dir.path().join(name), &figure).unwrap_err();
        assert!(matches!(error, ChartError::Extension { .. }));
        let message = error.to_string();
        assert!(message.contains(name) && message.contains(".svg or .png"), "{message}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}
