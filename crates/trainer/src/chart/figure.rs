//! What a chart shows, as data.

/// One or more panels in a grid.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Figure {
    /// Above all panels; empty for none.
    pub title: String,
    /// Row by row.
    pub panels: Vec<Panel>,
    /// Panels of a row.
    pub columns: usize,
    /// Width and height of a panel with its axes, in pixels.
    pub panel_size: (u32, u32),
}

impl Figure {
    /// All panels in one row, each of 800 by 480 pixels.
    pub fn new(panels: Vec<Panel>) -> Self {
        Self { title: String::new(), columns: panels.len(), panels, panel_size: (800, 480) }
    }

    /// The title above all panels.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// The number of panels in a row.
    pub fn columns(mut self, columns: usize) -> Self {
        self.columns = columns;
        self
    }

    /// The size of a panel with its axes, in pixels; at least 160 by 120.
    pub fn panel_size(mut self, width: u32, height: u32) -> Self {
        self.panel_size = (width, height);
        self
    }
}

/// Two axes, and what is drawn between them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Panel {
    /// Above it; empty for none.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// In the order in which they are drawn, and listed in the legend above the frame.
    pub marks: Vec<Mark>,
}

impl Panel {
    /// A panel without marks.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, marks: Vec::new() }
    }

    /// Adds a mark above those that are there.
    pub fn mark(mut self, mark: Mark) -> Self {
        self.marks.push(mark);
        self
    }

    /// Adds several marks.
    pub fn marks(mut self, marks: impl IntoIterator<Item = Mark>) -> Self {
        self.marks.extend(marks);
        self
    }
}

/// An axis of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub(super) label: String,
    pub(super) scale: Scale,
    pub(super) range: Option<(f64, f64)>,
}

/// How an axis maps values to places.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scale {
    Linear,
    Log,
    /// The names of 0, 1, 2, ...
    Categories(Vec<String>),
}

impl Axis {
    /// Values at even distances.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Linear, range: None }
    }

    /// Ratios at even distances; only positive values are drawn.
    pub fn log(label: impl Into<String>) -> Self {
        Self { scale: Scale::Log, ..Self::linear(label) }
    }

    /// Names for the values 0, 1, 2, ...; from top to bottom where the axis is the vertical one.
    pub fn categories<S: Into<String>>(label: impl Into<String>, names: impl IntoIterator<Item = S>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self { scale: Scale::Categories(names), ..Self::linear(label) }
    }

    /// Exactly this range, instead of that of the marks and a margin. Categories have all of theirs always.
    pub fn range(mut self, min: f64, max: f64) -> Self {
        self.range = Some((min, max));
        self
    }
}

/// The colour of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Color {
    /// The next colour that no mark of the panel has taken in this way.
    #[default]
    Auto,
    /// A colour by its number, for marks that belong together: in one panel, as a line and its band, or in several. Numbers from
    /// [`Color::COUNT`] on begin again, with other dashes and shapes.
    Series(usize),
    /// Grey: for what others are compared with.
    Neutral,
    /// Light grey: for the raw data behind a smoothed line.
    Faint,
}

/// Something that a panel shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    pub(super) name: String,
    pub(super) color: Color,
    pub(super) width: f64,
    pub(super) shape: Shape,
}

/// What a mark draws. Points are (x, y) in the units of the axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    Line(Vec<(f64, f64)>),
    Points {
        at: Vec<(f64, f64)>,
        /// Beside the points; fewer than there are points is no error.
        labels: Vec<String>,
    },
    Bars {
        values: Vec<f64>,
        /// Half lengths of error bars; fewer than there are bars is no error.
        spread: Vec<f64>,
    },
    /// (x, low, high).
    Band(Vec<(f64, f64, f64)>),
    /// (x, low, high).
    ErrorBars(Vec<(f64, f64, f64)>),
    Reference(f64),
    Diagonal,
    HeatMap(Vec<Vec<f64>>),
}

impl Mark {
    fn new(name: impl Into<String>, shape: Shape) -> Self {
        Self { name: name.into(), color: Color::Auto, width: 2.0, shape }
    }

    /// A line through points, in their order. It is interrupted at what is no number.
    pub fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self::new(name, Shape::Line(points))
    }

    /// Points alone; see [`Mark::labels`].
    pub fn points(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self::new(name, Shape::Points { at: points, labels: Vec::new() })
    }

    /// A bar from 0 to each value, for x = 0, 1, 2, ...: the axis should be one of categories. Several marks of bars stand side
    /// by side.
    pub fn bars(name: impl Into<String>, values: Vec<f64>) -> Self {
        Self::new(name, Shape::Bars { values, spread: Vec::new() })
    }

    /// The area between `low` and `high`, of points (x, low, high): a spread over seeds.
    pub fn band(name: impl Into<String>, points: Vec<(f64, f64, f64)>) -> Self {
        Self::new(name, Shape::Band(points))
    }

    /// A vertical bar from `low` to `high` at each x, of points (x, low, high).
    pub fn error_bars(name: impl Into<String>, points: Vec<(f64, f64, f64)>) -> Self {
        Self::new(name, Shape::ErrorBars(points))
    }

    /// A dashed horizontal line, as that of a floor.
    pub fn reference(name: impl Into<String>, y: f64) -> Self {
        Self::new(name, Shape::Reference(y))
    }

    /// The dashed grey line y = x: what is calibrated lies on it.
    pub fn diagonal(name: impl Into<String>) -> Self {
        Self::new(name, Shape::Diagonal).color(Color::Neutral)
    }

    /// A matrix of values from 0 to 1, its first row on top, with a scale of its colours. Row and column numbers are y and x.
    pub fn heat_map(rows: Vec<Vec<f64>>) -> Self {
        Self::new("", Shape::HeatMap(rows))
    }

    /// The colour; [`Color::Auto`] without this.
    pub fn color(mut self, color: Color) -> Self {
        self.color = color;
        self
    }

    /// The width of its lines in pixels; 2 without this.
    pub fn width(mut self, width: f64) -> Self {
        self.width = width;
        self
    }

    /// The texts beside the points of [`Mark::points`], in their order. Other marks have none.
    pub fn labels<S: Into<String>>(mut self, texts: impl IntoIterator<Item = S>) -> Self {
        if let Shape::Points { labels, .. } = &mut self.shape {
            *labels = texts.into_iter().map(Into::into).collect();
        }
        self
    }

    /// Error bars on [`Mark::bars`], from value - spread to value + spread. Other marks have none.
    pub fn spread(mut self, half_lengths: Vec<f64>) -> Self {
        if let Shape::Bars { spread, .. } = &mut self.shape {
            *spread = half_lengths;
        }
        self
    }
}
