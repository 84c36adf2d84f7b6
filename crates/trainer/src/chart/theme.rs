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

/// The hues of Okabe and Ito (<https://jfly.uni-koeln.de/color/>) but yellow, which cannot be seen on white; moved until all
/// stand out against the background and the least distance between two, to anyone, was largest.
const SERIES: [Ink; Color::COUNT] = [
    ink("blue", 0x3C_36_ED, 0x6C_70_FF),
    ink("vermillion", 0xA8_22_00, 0xE8_5D_33),
    ink("green", 0x00_6F_52, 0x07_E3_8D),
    ink("purple", 0xC0_77_B0, 0xD9_6C_9D),
    ink("orange", 0xD9_7F_00, 0xFF_C3_2C),
    ink("sky", 0x1A_98_FF, 0xAA_CD_FF),
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

/// The element `style` of an SVG. Edges of rectangles are whole pixels, or seams would show between those of a heat map. Where
/// properties of CSS are unknown, the light colours of the attributes stay.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Linear light of the channels, from 0 to 1.
    fn linear((r, g, b): Rgb) -> [f64; 3] {
        [r, g, b].map(|channel| {
            let c = f64::from(channel) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        })
    }

    fn times(matrix: [[f64; 3]; 3], v: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| row.iter().zip(v).map(|(m, x)| m * x).sum())
    }

    /// The contrast ratio of WCAG 2.
    fn contrast(a: Rgb, b: Rgb) -> f64 {
        let luminance =
            |color| linear(color).iter().zip([0.2126, 0.7152, 0.0722]).map(|(c, weight)| c * weight).sum::<f64>();
        let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
        (a / b).max(b / a)
    }

    /// CIE L*a*b* of linear light.
    fn lab(rgb: [f64; 3]) -> [f64; 3] {
        let xyz = times(
            [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]],
            rgb.map(|c| c.clamp(0.0, 1.0)),
        );
        let f = |t: f64| if t > 0.008_856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
        let [x, y, z] = [f(xyz[0] / 0.9505), f(xyz[1]), f(xyz[2] / 1.089)];
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    /// Red, green and blue as seen without the cones of long, middle or short waves (Machado, Oliveira and Fernandes 2009).
    const SEEN: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152_286, 1.052_583, -0.204_868], [0.114_503, 0.786_281, 0.099_216], [-0.003_882, -0.048_116, 1.051_998]],
        [[0.367_322, 0.860_646, -0.227_968], [0.280_085, 0.672_501, 0.047_413], [-0.011_820, 0.042_940, 0.968_881]],
        [[1.255_528, -0.076_749, -0.178_779], [-0.078_411, 0.930_809, 0.147_602], [0.004_733, 0.691_367, 0.303_900]],
    ];

    #[test]
    fn texts_and_series_stand_out_in_both_themes() {
        for of in [|ink: &Ink| ink.light, |ink: &Ink| ink.dark] {
            let back = of(&BACKGROUND);
            assert!(contrast(of(&TEXT), back) > 12.0 && contrast(of(&AXIS), back) > 4.5);
            for ink in SERIES.iter().chain([&NEUTRAL]) {
                assert!(contrast(of(ink), back) >= 3.0, "{} {:.2}", ink.name, contrast(of(ink), back));
            }
            assert!((1.1..1.5).contains(&contrast(of(&GRID), back)), "a grid is there and keeps back");
        }
    }

    #[test]
    fn the_colour_blind_tell_series_apart() {
        for (blindness, seen) in SEEN.iter().enumerate() {
            for of in [|ink: &Ink| ink.light, |ink: &Ink| ink.dark] {
                let labs = SERIES.map(|ink| lab(times(*seen, linear(of(&ink)))));
                for (a, b) in (0..SERIES.len()).flat_map(|b| (0..b).map(move |a| (a, b))) {
                    let distance = labs[a].iter().zip(labs[b]).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                    let names = (SERIES[a].name, SERIES[b].name);
                    assert!(distance > 25.0, "{names:?}, blindness {blindness}: {distance:.1}");
                }
            }
        }
    }

    #[test]
    fn inks_differ_and_a_heat_map_has_none_of_them() {
        let lights: Vec<Rgb> = inks().map(|ink| ink.light).collect();
        assert!(lights.iter().enumerate().all(|(n, ink)| !lights[..n].contains(ink)));
        let heats: Vec<Rgb> = (0..HEAT_LEVELS).map(heat).collect();
        assert!(heats.iter().enumerate().all(|(n, color)| !lights.contains(color) && !heats[..n].contains(color)));
        let lightness: Vec<f64> = heats.iter().map(|&color| lab(linear(color))[0]).collect();
        assert!(lightness.is_sorted(), "{lightness:?}");
    }
}
