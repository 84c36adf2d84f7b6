//! Texts of charts: made legible, measured, and cut to a width.

use std::sync::Once;

use plotters::style::{FontDesc, FontFamily, FontStyle, register_font};

/// DejaVu Sans, of Latin, Greek, Cyrillic and symbols; `fonts/README.md` says how it was made.
static FONT: &[u8] = include_bytes!("../../fonts/DejaVuSans-subset.ttf");

/// Sizes in pixels.
pub(super) const TITLE: f64 = 17.0;
pub(super) const LABEL: f64 = 13.0;
pub(super) const TICK: f64 = 12.0;

/// The height of a line of [`FONT`] in ems, which is what `plotters` takes for its size where it draws the letters itself.
pub(super) const LINE_PER_EM: f64 = 2384.0 / 2048.0;

/// The font in a size as `plotters` counts it. Its name is for the SVG, where the viewer's own font of that kind is used;
/// widths are always those of [`FONT`], so a figure has the same layout everywhere.
pub(super) fn font(size: f64) -> FontDesc<'static> {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // A font that is missing shows as an error when the first text is drawn.
        let _ = register_font("sans-serif", FontStyle::Normal, FONT);
    });
    FontDesc::new(FontFamily::SansSerif, size, FontStyle::Normal)
}

/// The width of a text in pixels.
pub(super) fn width(text: &str, em: f64) -> f64 {
    // Measured large, since `plotters` rounds to whole pixels.
    const LARGE: f64 = 64.0;
    font(LARGE * LINE_PER_EM).layout_box(text).map_or(0.0, |(low, high)| f64::from(high.0 - low.0) * em / LARGE)
}

/// What a person can read, and XML can hold: control characters and those that change the direction of what follows are
/// shown as escapes.
pub(super) fn legible(text: &str) -> String {
    let mut legible = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\0'..='\x1f' | '\x7f'..='\u{9f}' => match c {
                '\n' | '\r' | '\t' => legible.extend(c.escape_default()),
                _ => legible.push_str(&format!("\\x{:02x}", u32::from(c))),
            },
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                legible.extend(c.escape_unicode())
            }
            '\u{fffe}' | '\u{ffff}' => legible.push('\u{fffd}'),
            _ => legible.push(c),
        }
    }
    legible
}

/// The text, or as much of its beginning as fits with an ellipsis.
pub(super) fn cut(text: &str, em: f64, room: f64) -> String {
    if width(text, em) <= room {
        return text.to_owned();
    }
    // The longest text that fits has at most this many characters, so a book as a label costs no more than a line.
    let most = (room / em * 5.0).max(1.0) as usize;
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).take(most).collect();
    let fits = ends.partition_point(|&end| width(&format!("{}…", &text[..end]), em) <= room);
    format!("{}…", &text[..ends[fits.saturating_sub(1)]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_as_escapes() {
        assert_eq!(legible("a\n\t\x1b[1m\0\u{85}ü"), r"a\n\t\x1b[1m\x00\x85ü");
        assert_eq!(legible("\u{202e}x\u{ffff}"), "\\u{202e}x\u{fffd}");
    }

    #[test]
    fn a_text_is_cut_to_the_room_there_is() {
        assert!((width("mmmmmmmmmm", 10.0) - 97.4).abs() < 1.0, "{}", width("mmmmmmmmmm", 10.0));
        assert_eq!(cut("short", LABEL, 100.0), "short");
        let cut_text = cut(&"long ".repeat(100_000), LABEL, 100.0);
        assert!(cut_text.ends_with('…') && cut_text.starts_with("long long"), "{cut_text}");
        assert!((80.0..=100.0).contains(&width(&cut_text, LABEL)));
        assert_eq!(cut("long", LABEL, 0.0), "…");
    }
}
