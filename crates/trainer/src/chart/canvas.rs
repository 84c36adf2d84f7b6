//! Lines, areas and texts on a backend of `plotters`, in pixels of the figure.

use plotters::{
    backend::DrawingBackend,
    style::{
        FontTransform, RGBAColor, ShapeStyle, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{
    ChartError, Result, text,
    theme::{Dash, Ink, Marker, Rgb},
};

/// Units of the backend in a pixel of the figure: `plotters` draws at whole ones, in which a curve would have steps.
pub(super) const UNITS: f64 = 4.0;

/// (x, y) from the upper left corner, in pixels of the figure.
pub(super) type Point = (f64, f64);

/// How a line is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stroke {
    pub(super) ink: Ink,
    /// In pixels.
    pub(super) width: f64,
    pub(super) dash: Dash,
}

/// Which point of a text lies where it is drawn; vertically it is its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Middle,
    Right,
}

/// How a text is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Letters {
    /// Its em in pixels.
    pub(super) em: f64,
    pub(super) ink: Ink,
    pub(super) align: Align,
    /// From bottom to top.
    pub(super) upwards: bool,
}

/// How a backend sets texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Typesetting {
    /// What it takes for the size of a font with an em of 1.
    pub(super) size_per_em: f64,
    /// By how many ems a text has to be lowered for the middle of its capitals to lie where it should.
    pub(super) lower: f64,
}

/// A backend in pixels of the figure.
pub(super) struct Canvas<B> {
    backend: B,
    typesetting: Typesetting,
}

impl<B: DrawingBackend> Canvas<B> {
    pub(super) fn new(backend: B, typesetting: Typesetting) -> Self {
        Self { backend, typesetting }
    }

    /// Ends the drawing.
    pub(super) fn present(mut self) -> Result<()> {
        self.backend.present().map_err(failed)
    }

    pub(super) fn line(&mut self, points: &[Point], stroke: Stroke) -> Result<()> {
        let style = style(stroke.ink.light, 1.0, stroke.width);
        for piece in dashes(points, stroke.dash) {
            self.backend.draw_path(piece.into_iter().map(units), &style).map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn area(&mut self, corners: &[Point], ink: Ink, alpha: f64) -> Result<()> {
        self.backend.fill_polygon(corners.iter().copied().map(units), &style(ink.light, alpha, 1.0)).map_err(failed)
    }

    pub(super) fn rectangle(&mut self, from: Point, to: Point, color: Rgb) -> Result<()> {
        self.backend.draw_rect(units(from), units(to), &style(color, 1.0, 1.0), true).map_err(failed)
    }

    /// A point of 7 pixels.
    pub(super) fn marker(&mut self, (x, y): Point, marker: Marker, ink: Ink) -> Result<()> {
        const R: f64 = 3.5;
        match marker {
            Marker::Circle => {
                let radius = (R * UNITS).round() as u32;
                self.backend.draw_circle(units((x, y)), radius, &style(ink.light, 1.0, 1.0), true).map_err(failed)
            }
            Marker::Square => self.rectangle((x - R, y - R), (x + R, y + R), ink.light),
            Marker::Triangle => self.area(&[(x, y - 1.2 * R), (x + 1.2 * R, y + R), (x - 1.2 * R, y + R)], ink, 1.0),
            Marker::Diamond => {
                let r = 1.3 * R;
                self.area(&[(x, y - r), (x + r, y), (x, y + r), (x - r, y)], ink, 1.0)
            }
            Marker::Cross => {
                let stroke = Stroke { ink, width: 2.0, dash: &[] };
                self.line(&[(x - R, y - R), (x + R, y + R)], stroke)?;
                self.line(&[(x - R, y + R), (x + R, y - R)], stroke)
            }
        }
    }

    /// Draws a text, which [`text::legible`] has been through.
    pub(super) fn text(&mut self, text: &str, (x, y): Point, letters: Letters) -> Result<()> {
        let h = match letters.align {
            Align::Left => HPos::Left,
            Align::Middle => HPos::Center,
            Align::Right => HPos::Right,
        };
        let turn = if letters.upwards { FontTransform::Rotate270 } else { FontTransform::None };
        let style = TextStyle {
            font: text::font(letters.em * UNITS * self.typesetting.size_per_em).transform(turn),
            color: plotters::style::Color::to_backend_color(&color(letters.ink.light, 1.0)),
            pos: Pos::new(h, VPos::Center),
        };
        let lower = self.typesetting.lower * letters.em;
        let at = if letters.upwards { (x + lower, y) } else { (x, y + lower) };
        self.backend.draw_text(text, &style, units(at)).map_err(failed)
    }
}

fn units((x, y): Point) -> (i32, i32) {
    ((x * UNITS).round() as i32, (y * UNITS).round() as i32)
}

fn color((r, g, b): Rgb, alpha: f64) -> RGBAColor {
    RGBAColor(r, g, b, alpha)
}

fn style(rgb: Rgb, alpha: f64, width: f64) -> ShapeStyle {
    ShapeStyle { color: color(rgb, alpha), filled: true, stroke_width: (width * UNITS).round().max(1.0) as u32 }
}

fn failed(error: impl std::fmt::Display) -> ChartError {
    ChartError::Backend(error.to_string())
}

/// The pieces of a line that are drawn. A pattern goes on around the corners.
fn dashes(points: &[Point], dash: Dash) -> Vec<Vec<Point>> {
    if dash.is_empty() || points.is_empty() {
        return vec![points.to_vec()];
    }
    let (mut pieces, mut piece) = (Vec::new(), vec![points[0]]);
    let mut lengths = dash.iter().copied().cycle();
    let mut left = lengths.next().unwrap_or(f64::INFINITY);
    let mut drawn = true;
    for ends in points.windows(2) {
        let (mut from, to) = (ends[0], ends[1]);
        loop {
            let (dx, dy) = (to.0 - from.0, to.1 - from.1);
            let length = dx.hypot(dy);
            if length < left {
                left -= length;
                break;
            }
            from = (from.0 + dx * left / length, from.1 + dy * left / length);
            piece.push(from);
            if drawn {
                pieces.push(std::mem::take(&mut piece));
            } else {
                piece = vec![from];
            }
            drawn = !drawn;
            left = lengths.next().unwrap_or(f64::INFINITY);
        }
        if drawn {
            piece.push(to);
        }
    }
    if drawn && piece.len() > 1 {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_go_around_corners_and_cover_their_share() {
        let pieces = dashes(&[(0.0, 0.0), (5.0, 0.0), (5.0, 7.0)], &[6.0, 3.0]);
        assert_eq!(pieces, [vec![(0.0, 0.0), (5.0, 0.0), (5.0, 1.0)], vec![(5.0, 4.0), (5.0, 7.0)]]);
        assert_eq!(dashes(&[(0.0, 0.0), (5.0, 0.0)], &[]), [vec![(0.0, 0.0), (5.0, 0.0)]]);
        assert!(dashes(&[], &[1.0]).iter().all(Vec::is_empty));
    }
}
