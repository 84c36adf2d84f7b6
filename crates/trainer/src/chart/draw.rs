//! A figure's panels, their frames and axes.

use plotters::backend::DrawingBackend;

use super::{
    ChartError, Result,
    canvas::{Align, Canvas, Letters, Point, Stroke},
    figure::{Figure, Mark, Panel, Shape},
    legend, marks,
    scale::{Scaled, Tick},
    text::{self, cut, legible},
    theme::{AXIS, BACKGROUND, GRID, Look, SOLID, TEXT},
};

/// Around a panel, in pixels.
const MARGIN: f64 = 14.0;
/// Between an axis' numbers and its frame, and between a label and the numbers.
const GAP: f64 = 6.0;
/// Of a line of text of the size of a label, or of a tick.
pub(super) const LINE: f64 = 18.0;
/// The least width and height of a panel.
const LEAST: (u32, u32) = (160, 120);

/// A rectangle in pixels of the figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Area {
    pub(super) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(super) fn height(&self) -> f64 {
        self.bottom - self.top
    }
}

/// Where marks are drawn, and what a place in it means.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) area: Area,
    pub(super) x: Scaled,
    pub(super) y: Scaled,
    /// Whether y grows downwards, as the rows of a matrix do.
    pub(super) downwards: bool,
}

impl Frame {
    /// Where a point is drawn, be it in the frame or outside; `None` if it has no place on these axes.
    pub(super) fn at(&self, (x, y): Point) -> Option<Point> {
        if !self.x.shows(x) || !self.y.shows(y) {
            return None;
        }
        let (across, up) = (self.x.place(x), self.y.place(y));
        let down = if self.downwards { up } else { 1.0 - up };
        Some((self.area.left + across * self.area.width(), self.area.top + down * self.area.height()))
    }

    /// Whether a place is in the frame or on its border.
    pub(super) fn holds(&self, (x, y): Point) -> bool {
        (self.area.left..=self.area.right).contains(&x) && (self.area.top..=self.area.bottom).contains(&y)
    }
}

/// Width and height of a figure in pixels.
///
/// # Errors
/// [`ChartError::Empty`].
pub(super) fn size(figure: &Figure) -> Result<(f64, f64)> {
    if figure.panels.is_empty() {
        return Err(ChartError::Empty);
    }
    let columns = columns(figure);
    let (width, height) = panel_size(figure);
    let rows = figure.panels.len().div_ceil(columns);
    Ok((columns as f64 * width, rows as f64 * height + title_height(figure)))
}

fn columns(figure: &Figure) -> usize {
    figure.columns.clamp(1, figure.panels.len().max(1))
}

fn panel_size(figure: &Figure) -> (f64, f64) {
    let (width, height) = figure.panel_size;
    (f64::from(width.max(LEAST.0)), f64::from(height.max(LEAST.1)))
}

fn title_height(figure: &Figure) -> f64 {
    if figure.title.is_empty() { 0.0 } else { 36.0 }
}

/// Draws a figure of [`size`].
pub(super) fn figure<B: DrawingBackend>(canvas: &mut Canvas<B>, figure: &Figure) -> Result<()> {
    let (total, height) = size(figure)?;
    canvas.rectangle((0.0, 0.0), (total, height), BACKGROUND.light)?;
    let letters = Letters { em: text::TITLE, ink: TEXT, align: Align::Middle, upwards: false };
    let title = cut(&legible(&figure.title), text::TITLE, total - 2.0 * MARGIN);
    if !title.is_empty() {
        canvas.text(&title, (total / 2.0, 22.0), letters)?;
    }
    let (width, height) = panel_size(figure);
    for (n, panel) in figure.panels.iter().enumerate() {
        let (row, column) = (n / columns(figure), n % columns(figure));
        let (left, top) = (column as f64 * width, title_height(figure) + row as f64 * height);
        self::panel(canvas, panel, Area { left, top, right: left + width, bottom: top + height })?;
    }
    Ok(())
}

fn panel<B: DrawingBackend>(canvas: &mut Canvas<B>, panel: &Panel, whole: Area) -> Result<()> {
    let mut next = 0;
    let looks: Vec<(&Mark, Look)> = panel.marks.iter().map(|mark| (mark, Look::of(mark.color, &mut next))).collect();
    let (x, y) = scales(panel)?;
    let heat = panel.marks.iter().any(|mark| matches!(mark.shape, Shape::HeatMap(_)));

    let mut area = Area {
        left: whole.left + MARGIN,
        top: whole.top + MARGIN,
        right: whole.right - MARGIN,
        bottom: whole.bottom - MARGIN,
    };
    let letters = Letters { em: text::LABEL, ink: TEXT, align: Align::Middle, upwards: false };
    let title = cut(&legible(&panel.title), text::TITLE, area.width());
    if !title.is_empty() {
        let large = Letters { em: text::TITLE, ..letters };
        canvas.text(&title, (whole.left + (whole.right - whole.left) / 2.0, area.top + 8.0), large)?;
        area.top += 28.0;
    }
    area.top = legend::draw(canvas, &looks, area)?;
    // The highest number beside the axis is half above the frame.
    area.top += if area.top == whole.top + MARGIN { GAP } else { 0.0 };
    if heat {
        area.right -= legend::HEAT_WIDTH;
    }

    // The numbers of y first: their width says how wide the frame is, and that how many numbers x has.
    let label = |text: &str, room: f64| cut(&legible(text), text::LABEL, room);
    let (x_label, y_label) = (label(&panel.x.label, area.width()), label(&panel.y.label, area.height()));
    let label_height = |label: &str| if label.is_empty() { 0.0 } else { LINE + GAP };
    let y_ticks = fitting(y.ticks((area.height() / 50.0) as usize), y.is_categories(), area.height() - 2.0 * LINE);
    let room = area.width() / 3.0;
    let y_ticks: Vec<Tick> =
        y_ticks.into_iter().map(|t| Tick { label: cut(&t.label, text::TICK, room), ..t }).collect();
    area.left += label_height(&y_label) + GAP + widest(&y_ticks);
    let x_ticks = x.ticks((area.width() / 75.0) as usize);
    // Names that do not fit side by side are turned.
    let turned = x.is_categories() && widest(&x_ticks) + GAP > area.width() / x_ticks.len().max(1) as f64;
    let x_ticks = fitting(x_ticks, turned, area.width());
    let room = if turned { area.height() / 3.0 } else { area.width() };
    let x_ticks: Vec<Tick> =
        x_ticks.into_iter().map(|t| Tick { label: cut(&t.label, text::TICK, room), ..t }).collect();
    let x_height = if turned { widest(&x_ticks) } else { LINE - GAP };
    area.bottom -= label_height(&x_label) + GAP + x_height;

    let frame = Frame { area, downwards: y.is_categories() || heat, x, y };
    grid(canvas, &frame, &x_ticks, &y_ticks)?;
    let drawn = marks::draw(canvas, &frame, &looks)?;
    border(canvas, &area)?;
    let small = Letters { em: text::TICK, ink: AXIS, align: Align::Right, upwards: false };
    for tick in &y_ticks {
        if let Some((_, y)) = frame.at((frame.x.min, tick.value)) {
            canvas.text(&tick.label, (area.left - GAP, y), small)?;
        }
    }
    for tick in &x_ticks {
        if let Some((x, _)) = frame.at((tick.value, frame.y.min)) {
            let (below, letters) = if turned {
                (GAP, Letters { upwards: true, ..small })
            } else {
                (GAP + 6.0, Letters { align: Align::Middle, ..small })
            };
            canvas.text(&tick.label, (x, area.bottom + below), letters)?;
        }
    }
    let middle = ((area.left + area.right) / 2.0, (area.top + area.bottom) / 2.0);
    if !x_label.is_empty() {
        canvas.text(&x_label, (middle.0, whole.bottom - MARGIN - LINE / 2.0), letters)?;
    }
    if !y_label.is_empty() {
        canvas.text(&y_label, (whole.left + MARGIN + LINE / 2.0, middle.1), Letters { upwards: true, ..letters })?;
    }
    if heat {
        legend::heat(canvas, &area)?;
    }
    if !drawn {
        canvas.text("no data", middle, Letters { ink: AXIS, ..letters })?;
    }
    Ok(())
}

/// The axes over all that the marks show.
fn scales(panel: &Panel) -> Result<(Scaled, Scaled)> {
    let points = || panel.marks.iter().flat_map(marks::extent);
    // A matrix fills its frame; a curve goes from side to side, and points keep off the border.
    let exact = panel.marks.iter().any(|mark| matches!(mark.shape, Shape::HeatMap(_)));
    let (across, up) = if exact { (0.0, 0.0) } else { (0.02, 0.06) };
    let x = Scaled::new(&panel.x, points().filter_map(|(x, _)| x), across)?;
    let mut y = Scaled::new(&panel.y, points().filter_map(|(_, y)| y), up)?;
    // Bars stand on the axis.
    let bars = panel.marks.iter().any(|mark| matches!(mark.shape, Shape::Bars { .. }));
    if bars && panel.y.range.is_none() && y.shows(0.0) && points().filter_map(|(_, y)| y).all(|y| y >= 0.0) {
        y.min = 0.0;
    }
    Ok((x, y))
}

/// All ticks; of names that are written line by line so many that no two lines touch.
fn fitting(ticks: Vec<Tick>, by_line: bool, room: f64) -> Vec<Tick> {
    let step = if by_line { (ticks.len() as f64 * (LINE - 4.0) / room.max(LINE)).ceil().max(1.0) as usize } else { 1 };
    ticks.into_iter().step_by(step).collect()
}

fn widest(ticks: &[Tick]) -> f64 {
    ticks.iter().map(|tick| text::width(&tick.label, text::TICK)).fold(0.0, f64::max)
}

/// Lines at the numbers of the axes; between categories there are none.
fn grid<B: DrawingBackend>(canvas: &mut Canvas<B>, frame: &Frame, x_ticks: &[Tick], y_ticks: &[Tick]) -> Result<()> {
    let stroke = Stroke { ink: GRID, width: 1.0, dash: SOLID };
    let Area { left, top, right, bottom } = frame.area;
    for tick in if frame.x.is_categories() { &[] } else { x_ticks } {
        if let Some((x, _)) = frame.at((tick.value, frame.y.min)) {
            canvas.line(&[(x, top), (x, bottom)], stroke)?;
        }
    }
    for tick in if frame.y.is_categories() { &[] } else { y_ticks } {
        if let Some((_, y)) = frame.at((frame.x.min, tick.value)) {
            canvas.line(&[(left, y), (right, y)], stroke)?;
        }
    }
    Ok(())
}

fn border<B: DrawingBackend>(canvas: &mut Canvas<B>, area: &Area) -> Result<()> {
    let &Area { left, top, right, bottom } = area;
    let stroke = Stroke { ink: AXIS, width: 1.0, dash: SOLID };
    canvas.line(&[(left, top), (left, bottom), (right, bottom), (right, top), (left, top)], stroke)
}
