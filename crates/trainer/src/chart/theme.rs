//! Colours, light and dark, and what tells marks apart besides.

use super::figure::Color;

/// Red, green and blue.
pub(super) type Rgb = (u8, u8, u8);

/// What is drawn in a colour. An SVG has the light one as an attribute, and a rule that puts the theme's in its place: so
/// no two inks have the same light colour, and a heat map has none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ink {
    /// The name of its CSS property, `--tinygpt-NAME`.
    pub(super) name: &'static str,
    pub(super) light: Rgb,
    dark: Rgb,
}

const fn ink(name: &'static str, light: u32, dark: u32) -> Ink {
    Ink { name, light: rgb(light), dark: rgb(dark) }
}

const fn rgb(hex: u32) -> Rgb {
    ((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
}

pub(super) const BACKGROUND: Ink = ink("background", 0xFF_FF_FF, 0x15_18_1D);
pub(super) const TEXT: Ink = ink("text", 0x1F_23_28, 0xE6_EA_EF);
/// Frames and the numbers beside them.
pub(super) const AXIS: Ink = ink("axis", 0x59_62_6D, 0xA3_AC_B7);
pub(super) const GRID: Ink = ink("grid", 0xE4_E7_EB, 0x2C_32_3A);
const NEUTRAL: Ink = ink("neutral", 0x6B_72_80, 0x9A_A4_B0);
const FAINT: Ink = ink("faint", 0xC4_CA_D1, 0x4A_52_5C);

/// The colours of Okabe and Ito (<https://jfly.uni-koeln.de/color/>) but yellow, which cannot be seen on white; the light ones
/// darker and the blue lighter where they would not stand out against the background.
const SERIES: [Ink; Color::COUNT] = [
    ink("blue", 0x00_72_B2, 0x45_A5_E6),
    ink("vermillion", 0xD5_5E_00, 0xEE_7B_2C),
    ink("green", 0x00_8F_68, 0x1F_B8_8C),
    ink("purple", 0xB8_5C_90, 0xD9_90_B7),
    ink("orange", 0xB8_80_00, 0xF0_B4_29),
    ink("sky", 0x3A_9B_D5, 0xA5_D8_F7),
    ink("black", 0x00_00_00, 0xFF_FF_FF),
];

/// All inks, each once.
pub(super) fn inks() -> impl Iterator<Item = Ink> {
    [BACKGROUND, TEXT, AXIS, GRID, NEUTRAL, FAINT].into_iter().chain(SERIES)
}

/// Lengths of dashes and of the gaps between them, in turn, in pixels.
pub(super) type Dash = &'static [f64];

pub(super) const SOLID: Dash = &[];
pub(super) const DASHED: Dash = &[7.0, 5.0];
const DASHES: [Dash; 4] = [SOLID, &[10.0, 4.0], &[2.0, 4.0], &[10.0, 4.0, 2.0, 4.0]];

/// The shape of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
}

const MARKERS: [Marker; 5] = [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond, Marker::Cross];

impl Color {
    /// How many there are before they begin again.
    pub const COUNT: usize = 7;
}

/// How a mark looks: the three differ together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) ink: Ink,
    pub(super) dash: Dash,
    pub(super) marker: Marker,
}

impl Look {
    /// That of a colour, of which automatic ones are those from `next` on.
    pub(super) fn of(color: Color, next: &mut usize) -> Self {
        // The three lengths have no common divisor, so a second round of the colours has other dashes and shapes.
        let series = |n: usize| Self {
            ink: SERIES[n % SERIES.len()],
            dash: DASHES[n % DASHES.len()],
            marker: MARKERS[n % MARKERS.len()],
        };
        match color {
            Color::Auto => {
                *next += 1;
                series(*next - 1)
            }
            Color::Series(n) => series(n),
            Color::Neutral => Self { ink: NEUTRAL, dash: SOLID, marker: Marker::Circle },
            Color::Faint => Self { ink: FAINT, dash: SOLID, marker: Marker::Circle },
        }
    }
}

/// From 0 to 1: cividis (Nuñez, Anderton and Renslow 2018), made for the colour-blind, whose lightness grows evenly.
const HEAT: [Rgb; 9] = [
    rgb(0x00_22_4E),
    rgb(0x12_35_70),
    rgb(0x3B_49_6C),
    rgb(0x57_5D_6D),
    rgb(0x70_71_73),
    rgb(0x8A_87_79),
    rgb(0xA6_9D_75),
    rgb(0xC4_B5_6C),
    rgb(0xFE_E8_38),
];

/// How many colours a heat map has: so few that equal neighbours can be drawn as one.
pub(super) const HEAT_LEVELS: usize = 64;

/// The colour of a level below [`HEAT_LEVELS`].
pub(super) fn heat(level: usize) -> Rgb {
    let at = level.min(HEAT_LEVELS - 1) as f64 / (HEAT_LEVELS - 1) as f64 * (HEAT.len() - 1) as f64;
    let low = (at as usize).min(HEAT.len() - 2);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * (at - low as f64)).round() as u8;
    let (a, b) = (HEAT[low], HEAT[low + 1]);
    (mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// The element `style` of an SVG. Edges of rectangles are whole pixels, or seams would show between those of a heat map. Where properties of CSS are unknown, the light colours of the attributes stay.
pub(super) fn style() -> String {
    let values = |of: fn(&Ink) -> Rgb| -> String {
        inks().map(|ink| format!("--tinygpt-{}:{};", ink.name, hex(of(&ink)))).collect()
    };
    let (light, dark) = (values(|ink| ink.light), values(|ink| ink.dark));
    let rules: String = inks()
        .map(|Ink { name, light, .. }| {
            let light = hex(light);
            format!(
                "svg.tinygpt-chart [fill=\"{light}\"]{{fill:var(--tinygpt-{name})}}\n\
                 svg.tinygpt-chart [stroke=\"{light}\"]{{stroke:var(--tinygpt-{name})}}\n"
            )
        })
        .collect();
    format!(
        "<style>\nsvg.tinygpt-chart{{{light}}}\n\
         @media (prefers-color-scheme: dark){{svg.tinygpt-chart{{{dark}}}}}\n\
         [data-theme=\"light\"] svg.tinygpt-chart{{{light}}}\n\
         [data-theme=\"dark\"] svg.tinygpt-chart{{{dark}}}\n\
         svg.tinygpt-chart rect{{shape-rendering:crispEdges}}\n{rules}</style>\n"
    )
}

/// As `plotters` writes it.
pub(super) fn hex((r, g, b): Rgb) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}
