//! A figure as PNG.

use plotters::backend::BitMapBackend;

use super::{
    ChartError, Result,
    canvas::{Canvas, Typesetting, UNITS},
    draw,
    figure::Figure,
    text,
};

/// Pixels of the image for one of the figure, so that it is sharp on dense screens too.
const DENSITY: usize = 2;
/// Units of the canvas for a pixel of the image, in either direction: their mean smooths edges.
const SAMPLES: usize = UNITS as usize / DENSITY;

/// `plotters` draws letters by its size in lines, and a seventh of an em too high.
const TYPESETTING: Typesetting = Typesetting { size_per_em: text::LINE_PER_EM, lower: 0.15 };

impl Figure {
    /// The figure as an image in its light colours, with two pixels for each of the figure's in either direction.
    ///
    /// # Errors
    /// Those of [`Figure::svg`].
    pub fn png(&self) -> Result<Vec<u8>> {
        let (width, height) = draw::size(self)?;
        // (height, width) in pixels of the image; the canvas has SAMPLES times as many rows and columns.
        let (width, height) = (width as usize * DENSITY, height as usize * DENSITY);
        let mut samples = vec![0; width * SAMPLES * height * SAMPLES * 3];
        let size = ((width * SAMPLES) as u32, (height * SAMPLES) as u32);
        let mut canvas = Canvas::new(BitMapBackend::with_buffer(&mut samples, size), TYPESETTING);
        draw::figure(&mut canvas, self)?;
        canvas.present()?;
        encode(width, height, &means(width, &samples)).map_err(|error| ChartError::Backend(error.to_string()))
    }
}

/// The mean of each square of samples: (height, width, 3) of (height * SAMPLES, width * SAMPLES, 3).
fn means(width: usize, samples: &[u8]) -> Vec<u8> {
    let row = width * SAMPLES * 3;
    let mut pixels = Vec::with_capacity(samples.len() / (SAMPLES * SAMPLES));
    for rows in samples.chunks_exact(row * SAMPLES) {
        for x in 0..width {
            for channel in 0..3 {
                let square = (0..SAMPLES * SAMPLES)
                    .map(|n| usize::from(rows[n / SAMPLES * row + (x * SAMPLES + n % SAMPLES) * 3 + channel]));
                pixels.push((square.sum::<usize>() / (SAMPLES * SAMPLES)) as u8);
            }
        }
    }
    pixels
}

/// The PNG of (height, width, 3) bytes.
fn encode(width: usize, height: usize, pixels: &[u8]) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}
