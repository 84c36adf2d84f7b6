//! The names of marks, and the scale of a heat map.

use plotters::backend::DrawingBackend;

use super::{
    Result,
    canvas::{Align, Canvas, Letters, Stroke},
    draw::{Area, LINE},
    figure::{Mark, Shape},
    text::{self, cut, legible},
    theme::{AXIS, DASHED, HEAT_LEVELS, Look, SOLID, TEXT, heat as heat_color},
};

/// The width of a sample of a mark, of the gap behind it, and of that between entries.
const SAMPLE: f64 = 26.0;
const GAP: f64 = 6.0;
const BETWEEN: f64 = 18.0;

/// The width that the scale of a heat map takes on the right of the frame.
pub(super) const HEAT_WIDTH: f64 = 56.0;

/// Draws the names of the marks that have some, in lines from the top of an area on, and returns where they end.
pub(super) fn draw<B: DrawingBackend>(canvas: &mut Canvas<B>, marks: &[(&Mark, Look)], area: Area) -> Result<f64> {
    let letters = Letters { em: text::LABEL, ink: TEXT, align: Align::Left, upwards: false };
    let (mut x, mut y) = (area.left, area.top);
    let named: Vec<_> = marks.iter().filter(|(mark, _)| !mark.name.is_empty()).collect();
    for (n, (mark, look)) in named.iter().enumerate() {
        let name = cut(&legible(&mark.name), text::LABEL, area.width() - SAMPLE - GAP);
        let width = SAMPLE + GAP + text::width(&name, text::LABEL);
        if n > 0 && x + width > area.right {
            (x, y) = (area.left, y + LINE);
        }
        sample(canvas, mark, *look, (x, y + LINE / 2.0))?;
        canvas.text(&name, (x + SAMPLE + GAP, y + LINE / 2.0), letters)?;
        x += width + BETWEEN;
    }
    Ok(if named.is_empty() { y } else { y + LINE + GAP })
}

/// A sample of a mark, from its left end's middle on.
fn sample<B: DrawingBackend>(canvas: &mut Canvas<B>, mark: &Mark, look: Look, (x, y): (f64, f64)) -> Result<()> {
    let (ink, ends) = (look.ink, [(x, y), (x + SAMPLE, y)]);
    let middle = (x + SAMPLE / 2.0, y);
    match &mark.shape {
        Shape::Line(points) => {
            canvas.line(&ends, Stroke { ink, width: mark.width, dash: look.dash })?;
            if super::marks::is_marked(mark, points) { canvas.marker(middle, look.marker, ink) } else { Ok(()) }
        }
        Shape::Points { .. } => canvas.marker(middle, look.marker, ink),
        Shape::Bars { .. } => canvas.rectangle((x + 7.0, y - 6.0), (x + SAMPLE - 7.0, y + 6.0), ink.light),
        Shape::Band(_) => {
            let (right, top, bottom) = (x + SAMPLE, y - 5.0, y + 5.0);
            canvas.area(&[(x, top), (right, top), (right, bottom), (x, bottom)], ink, super::marks::BAND_ALPHA)
        }
        Shape::ErrorBars(_) => super::marks::error_bar(canvas, middle.0, (y - 6.0, y + 6.0), ink),
        Shape::Reference(_) | Shape::Diagonal => canvas.line(&ends, Stroke { ink, width: mark.width, dash: DASHED }),
        Shape::HeatMap(_) => Ok(()),
    }
}

/// The colours from 0 to 1 on the right of a frame.
pub(super) fn heat<B: DrawingBackend>(canvas: &mut Canvas<B>, frame: &Area) -> Result<()> {
    let (left, right) = (frame.right + 14.0, frame.right + 26.0);
    let y = |value: f64| frame.bottom - value * frame.height();
    for level in 0..HEAT_LEVELS {
        let ends = |n: usize| y(n as f64 / HEAT_LEVELS as f64);
        canvas.rectangle((left, ends(level + 1)), (right, ends(level)), heat_color(level))?;
    }
    let letters = Letters { em: text::TICK, ink: AXIS, align: Align::Left, upwards: false };
    let stroke = Stroke { ink: AXIS, width: 1.0, dash: SOLID };
    for (value, label) in [(0.0, "0"), (0.5, "0.5"), (1.0, "1")] {
        canvas.line(&[(right, y(value)), (right + 3.0, y(value))], stroke)?;
        canvas.text(label, (right + 6.0, y(value)), letters)?;
    }
    Ok(())
}
