//! Marks in a frame.

use plotters::backend::DrawingBackend;

use super::{
    ChartError, Result,
    canvas::{Align, Canvas, Letters, Point, Stroke},
    clip,
    draw::{Area, Frame},
    figure::{Color, Mark, Shape},
    text::{self, cut, legible},
    theme::{DASHED, HEAT_LEVELS, Ink, Look, SOLID, TEXT, heat},
};

/// The opacity of a band.
pub(super) const BAND_ALPHA: f64 = 0.25;
/// The share of a category's width that its bars take.
const BARS: f64 = 0.8;
/// Lines of so many points have their points marked.
const MARKED: usize = 32;

/// Whether the points of a line are marked.
pub(super) fn is_marked(mark: &Mark, points: &[Point]) -> bool {
    points.len() <= MARKED && mark.color != Color::Faint
}

/// What the axes should cover of a mark, as values of either.
pub(super) fn extent(mark: &Mark) -> Vec<(Option<f64>, Option<f64>)> {
    let point = |x: f64, y: f64| (x.is_finite() && y.is_finite()).then_some((Some(x), Some(y)));
    // Columns and rows lie around their numbers.
    let across = |count: usize| [-0.5, count as f64 - 0.5];
    match &mark.shape {
        Shape::Line(points) | Shape::Points { at: points, .. } => {
            points.iter().filter_map(|&(x, y)| point(x, y)).collect()
        }
        Shape::Bars { values, spread } => {
            let ends = values.iter().enumerate().flat_map(|(n, &value)| {
                let spread = spread.get(n).copied().filter(|spread| spread.is_finite()).unwrap_or(0.0);
                [value - spread, value + spread]
            });
            let y = ends.chain([0.0]).map(|y| (None, Some(y)));
            y.chain(across(values.len()).map(|x| (Some(x), None))).collect()
        }
        Shape::Band(points) | Shape::ErrorBars(points) => {
            points.iter().flat_map(|&(x, low, high)| [point(x, low), point(x, high)]).flatten().collect()
        }
        Shape::Reference(y) => vec![(None, Some(*y))],
        Shape::Diagonal => Vec::new(),
        Shape::HeatMap(rows) => {
            let columns = rows.first().map_or(0, Vec::len);
            let y = across(rows.len()).map(|y| (None, Some(y)));
            y.into_iter().chain(across(columns).map(|x| (Some(x), None))).collect()
        }
    }
}

/// Draws all marks, and says whether there was anything to draw.
pub(super) fn draw<B: DrawingBackend>(canvas: &mut Canvas<B>, frame: &Frame, marks: &[(&Mark, Look)]) -> Result<bool> {
    let groups = marks.iter().filter(|(mark, _)| matches!(mark.shape, Shape::Bars { .. })).count();
    let (mut group, mut drawn) = (0, false);
    for (mark, look) in marks {
        drawn |= match &mark.shape {
            Shape::Line(points) => line(canvas, frame, mark, points, *look)?,
            Shape::Points { at, labels } => points(canvas, frame, at, labels, *look)?,
            Shape::Bars { values, spread } => {
                let width = BARS / groups as f64;
                let left = group as f64 * width - BARS / 2.0;
                group += 1;
                bars(canvas, frame, values, spread, (left, width), look.ink)?
            }
            Shape::Band(points) => band(canvas, frame, points, look.ink)?,
            Shape::ErrorBars(points) => error_bars(canvas, frame, points.iter().copied(), look.ink)?,
            Shape::Reference(y) => {
                let ends = [(frame.x.min, *y), (frame.x.max, *y)];
                dashed(canvas, frame, ends.into_iter(), mark.width, look.ink)?
            }
            Shape::Diagonal => {
                // Of many points, since it is a curve where one axis is logarithmic.
                let (from, to) = (frame.x.min.max(frame.y.min), frame.x.max.min(frame.y.max));
                let ends = (0..=64).map(|n| from + (to - from) * f64::from(n) / 64.0).map(|at| (at, at));
                from < to && dashed(canvas, frame, ends, mark.width, look.ink)?
            }
            Shape::HeatMap(rows) => heat_map(canvas, frame, rows)?,
        };
    }
    Ok(drawn)
}

fn line<B: DrawingBackend>(
    canvas: &mut Canvas<B>,
    frame: &Frame,
    mark: &Mark,
    points: &[Point],
    look: Look,
) -> Result<bool> {
    let places: Vec<Option<Point>> = points.iter().map(|&point| frame.at(point)).collect();
    let mut drawn = false;
    for piece in places.split(Option::is_none) {
        let piece: Vec<Point> = piece.iter().copied().flatten().collect();
        for piece in clip::inside(&piece, &frame.area) {
            drawn = true;
            if let [alone] = piece[..] {
                // A line of one point has no length.
                canvas.marker(alone, look.marker, look.ink)?;
            } else {
                canvas.line(&clip::thinned(&piece), Stroke { ink: look.ink, width: mark.width, dash: look.dash })?;
            }
        }
    }
    if is_marked(mark, points) {
        for place in places.into_iter().flatten().filter(|&place| frame.holds(place)) {
            canvas.marker(place, look.marker, look.ink)?;
        }
    }
    Ok(drawn)
}

fn dashed<B: DrawingBackend>(
    canvas: &mut Canvas<B>,
    frame: &Frame,
    points: impl Iterator<Item = Point>,
    width: f64,
    ink: Ink,
) -> Result<bool> {
    let places: Vec<Point> = points.filter_map(|point| frame.at(point)).collect();
    let pieces = clip::inside(&places, &frame.area);
    for piece in &pieces {
        canvas.line(piece, Stroke { ink, width, dash: DASHED })?;
    }
    Ok(!pieces.is_empty())
}

fn points<B: DrawingBackend>(
    canvas: &mut Canvas<B>,
    frame: &Frame,
    points: &[Point],
    labels: &[String],
    look: Look,
) -> Result<bool> {
    let places: Vec<(usize, Point)> = points
        .iter()
        .enumerate()
        .filter_map(|(n, &point)| Some((n, frame.at(point).filter(|&place| frame.holds(place))?)))
        .collect();
    for &(_, place) in &places {
        canvas.marker(place, look.marker, look.ink)?;
    }
    // Labels keep off the points and off each other, as far as one of four places lets them.
    let around = |(x, y): Point, (w, h): (f64, f64)| Area { left: x - w, right: x + w, top: y - h, bottom: y + h };
    let mut taken: Vec<Area> = places.iter().map(|&(_, place)| around(place, (4.0, 4.0))).collect();
    for &(n, (x, y)) in &places {
        let Some(label) = labels.get(n).filter(|label| !label.is_empty()) else { continue };
        let label = cut(&legible(label), text::TICK, frame.area.width() / 2.0);
        let half = text::width(&label, text::TICK) / 2.0;
        let middles = [(x + half + 8.0, y), (x - half - 8.0, y), (x, y - 12.0), (x, y + 12.0)];
        let free = |middle: &&Point| {
            let area = around(**middle, (half, 7.0));
            let holds = frame.holds((area.left, area.top)) && frame.holds((area.right, area.bottom));
            holds && !taken.iter().any(|other| overlap(other, &area))
        };
        let middle = *middles.iter().find(free).unwrap_or(&middles[0]);
        taken.push(around(middle, (half, 7.0)));
        let letters = Letters { em: text::TICK, ink: TEXT, align: Align::Middle, upwards: false };
        canvas.text(&label, middle, letters)?;
    }
    Ok(!places.is_empty())
}

fn overlap(a: &Area, b: &Area) -> bool {
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
}

/// Bars at x = 0, 1, 2, ..., from `left` of it on.
fn bars<B: DrawingBackend>(
    canvas: &mut Canvas<B>,
    frame: &Frame,
    values: &[f64],
    spread: &[f64],
    (left, width): (f64, f64),
    ink: Ink,
) -> Result<bool> {
    // There is no zero on a logarithmic axis.
    let base = if frame.y.shows(0.0) { 0.0 } else { frame.y.min };
    let mut drawn = false;
    for (n, &value) in values.iter().enumerate() {
        let x = n as f64 + left;
        let (Some(from), Some(to)) = (frame.at((x, base)), frame.at((x + width, value))) else { continue };
        drawn = true;
        let (from, to) = (within(from, &frame.area), within(to, &frame.area));
        // A pixel between neighbours.
        let gap = if to.0 - from.0 > 3.0 { 0.5 } else { 0.0 };
        let (top, bottom) = (from.1.min(to.1), from.1.max(to.1));
        if to.0 > from.0 {
            canvas.rectangle((from.0 + gap, top), (to.0 - gap, bottom), ink.light)?;
        }
    }
    let spreads = values.iter().zip(spread).enumerate();
    let spreads = spreads.map(|(n, (y, spread))| (n as f64 + left + width / 2.0, y - spread, y + spread));
    error_bars(canvas, frame, spreads.filter(|(_, low, high)| low != high), TEXT)?;
    Ok(drawn)
}

fn within((x, y): Point, area: &Area) -> Point {
    (x.clamp(area.left, area.right), y.clamp(area.top, area.bottom))
}

fn band<B: DrawingBackend>(
    canvas: &mut Canvas<B>,
    frame: &Frame,
    points: &[(f64, f64, f64)],
    ink: Ink,
) -> Result<bool> {
    let places: Vec<Option<(Point, Point)>> =
        points.iter().map(|&(x, low, high)| Some((frame.at((x, low))?, frame.at((x, high))?))).collect();
    let mut drawn = false;
    for piece in places.split(Option::is_none) {
        let (lows, highs): (Vec<Point>, Vec<Point>) = piece.iter().copied().flatten().unzip();
        let corners: Vec<Point> = lows.into_iter().chain(highs.into_iter().rev()).collect();
        let corners: Vec<Point> = corners.into_iter().map(|place| within(place, &frame.area)).collect();
        if corners.len() > 2 {
            drawn = true;
            canvas.area(&corners, ink, BAND_ALPHA)?;
        }
    }
    Ok(drawn)
}

fn error_bars<B: DrawingBackend>(
    canvas: &mut Canvas<B>,
    frame: &Frame,
    points: impl Iterator<Item = (f64, f64, f64)>,
    ink: Ink,
) -> Result<bool> {
    let mut drawn = false;
    for (x, low, high) in points {
        let (Some(low), Some(high)) = (frame.at((x, low)), frame.at((x, high))) else { continue };
        if (frame.area.left..=frame.area.right).contains(&low.0) {
            drawn = true;
            error_bar(canvas, low.0, (within(high, &frame.area).1, within(low, &frame.area).1), ink)?;
        }
    }
    Ok(drawn)
}

/// An error bar from top to bottom, in pixels.
pub(super) fn error_bar<B: DrawingBackend>(canvas: &mut Canvas<B>, x: f64, ends: (f64, f64), ink: Ink) -> Result<()> {
    let stroke = Stroke { ink, width: 1.5, dash: SOLID };
    canvas.line(&[(x, ends.0), (x, ends.1)], stroke)?;
    for y in [ends.0, ends.1] {
        canvas.line(&[(x - 3.5, y), (x + 3.5, y)], stroke)?;
    }
    Ok(())
}

/// A rectangle for each run of equal colours in a row; what is no number has none.
fn heat_map<B: DrawingBackend>(canvas: &mut Canvas<B>, frame: &Frame, rows: &[Vec<f64>]) -> Result<bool> {
    let columns = rows.first().map_or(0, Vec::len);
    let level =
        |&value: &f64| value.is_finite().then(|| (value.clamp(0.0, 1.0) * (HEAT_LEVELS - 1) as f64).round() as usize);
    let mut drawn = false;
    for (row, values) in rows.iter().enumerate() {
        if values.len() != columns {
            return Err(ChartError::Ragged { row, got: values.len(), expected: columns });
        }
        let levels: Vec<Option<usize>> = values.iter().map(level).collect();
        let mut column = 0;
        for run in levels.chunk_by(PartialEq::eq) {
            let (left, right) = (column as f64 - 0.5, (column + run.len()) as f64 - 0.5);
            column += run.len();
            let Some(color) = run[0].map(heat) else { continue };
            let (top, bottom) = (row as f64 - 0.5, row as f64 + 0.5);
            if let (Some(from), Some(to)) = (frame.at((left, top)), frame.at((right, bottom))) {
                let (from, to) = (within(from, &frame.area), within(to, &frame.area));
                drawn = true;
                canvas.rectangle(from, to, color)?;
            }
        }
    }
    Ok(drawn)
}
