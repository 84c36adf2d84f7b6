//! A figure as SVG.

use plotters::backend::SVGBackend;

use super::{
    Result,
    canvas::{Canvas, Typesetting, UNITS},
    draw,
    figure::Figure,
    theme,
};

/// The format of the files, in a comment of them.
const FORMAT: u64 = 1;

/// `plotters` divides a size by this to have an em, and lowers a text by half an x, which is a little less than half a
/// capital.
const TYPESETTING: Typesetting = Typesetting { size_per_em: 1.24, lower: 0.09 };

impl Figure {
    /// The figure as a document of its own, which can stand in a page of HTML as well.
    ///
    /// # Errors
    /// When there are no panels, a range is no interval, or a heat map is no matrix.
    pub fn svg(&self) -> Result<String> {
        let (width, height) = draw::size(self)?;
        let units = |pixels: f64| (pixels * UNITS) as u32;
        let mut svg = String::new();
        let backend = SVGBackend::with_string(&mut svg, (units(width), units(height)));
        let mut canvas = Canvas::new(backend, TYPESETTING);
        draw::figure(&mut canvas, self)?;
        canvas.present()?;
        // The backend's own first line knows neither classes nor another size than that in units.
        let drawn = svg.split_once('\n').map_or("", |(_, drawn)| drawn);
        Ok(format!(
            "<svg class=\"tinygpt-chart\" role=\"img\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {} {}\" \
             xmlns=\"http://www.w3.org/2000/svg\">\n<!-- tinygpt chart, format {FORMAT} -->\n{}{drawn}",
            units(width),
            units(height),
            theme::style()
        ))
    }
}
