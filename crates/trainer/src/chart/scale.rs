//! From values to places along an axis, and the numbers beside it.

use super::{
    ChartError, Result,
    figure::{Axis, Scale},
    text::legible,
};

/// Values beyond this count as infinite: differences and margins of all others are finite.
const LARGEST: f64 = 1e300;

/// An axis whose range is known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scaled {
    pub(super) min: f64,
    pub(super) max: f64,
    log: bool,
    /// The names of 0, 1, 2, ...
    names: Option<Vec<String>>,
}

/// A number or a name beside an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

impl Scaled {
    /// The axis over these values, with a margin on both sides as a share of the range.
    ///
    /// # Errors
    /// [`ChartError::Range`].
    pub(super) fn new(axis: &Axis, values: impl Iterator<Item = f64>, margin: f64) -> Result<Self> {
        let log = axis.scale == Scale::Log;
        if let Scale::Categories(names) = &axis.scale {
            let names: Vec<String> = names.iter().map(|name| legible(name)).collect();
            return Ok(Self { min: -0.5, max: names.len().max(1) as f64 - 0.5, log, names: Some(names) });
        }
        if let Some((min, max)) = axis.range {
            let scaled = Self { min, max, log, names: None };
            let good = scaled.shows(min) && scaled.shows(max) && min < max;
            return if good { Ok(scaled) } else { Err(ChartError::Range { label: axis.label.clone(), min, max }) };
        }
        let probe = Self { min: f64::NEG_INFINITY, max: f64::INFINITY, log, names: None };
        let (low, high) = values
            .filter(|&value| probe.shows(value))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (min, max) = match (low <= high, log) {
            (false, false) => (0.0, 1.0),
            (false, true) => (1.0, 10.0),
            (true, true) => {
                let reach = if low < high { (high / low).ln() * margin } else { 2f64.ln() };
                ((low.ln() - reach).exp(), (high.ln() + reach).exp())
            }
            (true, false) => {
                let reach = if low < high { (high - low) * margin } else { (0.1 * high.abs()).max(0.5) };
                (low - reach, high + reach)
            }
        };
        Ok(Self { min, max, log, names: None })
    }

    /// Whether a value has a place on axes of this kind.
    pub(super) fn shows(&self, value: f64) -> bool {
        value.abs() <= LARGEST && (!self.log || value >= 1.0 / LARGEST)
    }

    /// Where a value lies, from 0 at the axis' begin to 1 at its end.
    pub(super) fn place(&self, value: f64) -> f64 {
        if self.log {
            (value.ln() - self.min.ln()) / (self.max.ln() - self.min.ln())
        } else {
            (value - self.min) / (self.max - self.min)
        }
    }

    /// Whether its ticks are names.
    pub(super) fn is_categories(&self) -> bool {
        self.names.is_some()
    }

    /// About `count` numbers, or all names.
    pub(super) fn ticks(&self, count: usize) -> Vec<Tick> {
        if let Some(names) = &self.names {
            let tick = |(n, label): (usize, &String)| Tick { value: n as f64, label: label.clone() };
            return names.iter().enumerate().map(tick).collect();
        }
        let decades = self.max.log10() - self.min.log10();
        // Below a factor of ten 1, 2 and 5 are one or two ticks, which do not show that the axis is logarithmic.
        if !self.log || decades < 0.7 {
            return linear_ticks(self.min, self.max, count);
        }
        // 1, 2 and 5 of each decade where there is room for them, or each decade, or each second, ...
        let (first, last) = (self.min.log10().floor() as i32, self.max.log10().ceil() as i32);
        let digits: &[f64] = if 3.0 * decades <= 1.5 * count as f64 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let step = (decades / count.max(1) as f64).ceil().max(1.0) as usize;
        (first..=last)
            .step_by(step)
            .flat_map(|exponent| digits.iter().map(move |digit| digit * 10f64.powi(exponent)))
            .filter(|&value| (-1e-9..=1.0 + 1e-9).contains(&self.place(value)))
            .map(|value| Tick { value, label: number(value, 0) })
            .collect()
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(min: f64, max: f64, count: usize) -> Vec<Tick> {
    let rough = (max - min) / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|&step| step >= 0.999 * rough);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((min / step - 1e-9).ceil(), (max / step + 1e-9).floor());
    let largest = min.abs().max(max.abs());
    // Digits behind the point of a number whose unit is `unit`, so that neighbours differ.
    let digits = |unit: f64| (-(step / unit).log10() - 1e-9).ceil().clamp(0.0, 15.0) as usize;
    let unit = unit(largest);
    let label = |value: f64| match unit {
        Unit::Times(unit, suffix) => {
            let text = format!("{:.*}", digits(unit), value / unit);
            // Not "-0", nor "0k".
            if text.bytes().all(|b| matches!(b, b'-' | b'0' | b'.')) { "0".into() } else { text + suffix }
        }
        Unit::Scientific if value == 0.0 => "0".into(),
        Unit::Scientific => number(value, digits(10f64.powf(largest.log10().floor()))),
    };
    let count = (last - first).clamp(-1.0, 100.0) as i64;
    (0..=count).map(|n| (first + n as f64) * step).map(|value| Tick { value, label: label(value) }).collect()
}

/// What numbers of a size are written in.
#[derive(Clone, Copy)]
enum Unit {
    Times(f64, &'static str),
    Scientific,
}

fn unit(largest: f64) -> Unit {
    match largest {
        1e-3..1e4 => Unit::Times(1.0, ""),
        1e4..1e6 => Unit::Times(1e3, "k"),
        1e6..1e9 => Unit::Times(1e6, "M"),
        1e9..1e12 => Unit::Times(1e9, "G"),
        1e12..1e15 => Unit::Times(1e12, "T"),
        _ => Unit::Scientific,
    }
}

/// A positive number by itself, or in scientific notation with so many digits.
fn number(value: f64, digits: usize) -> String {
    match unit(value.abs()) {
        Unit::Times(unit, suffix) => {
            // Away from the error of the last bit, as in 0.30000000000000004.
            let rounded = (value / unit * 1e6).round() / 1e6;
            format!("{rounded}{suffix}")
        }
        Unit::Scientific => format!("{value:.digits$e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, values: &[f64], count: usize) -> Vec<String> {
        let scaled = Scaled::new(axis, values.iter().copied(), 0.0).unwrap();
        scaled.ticks(count).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn linear_ticks_are_round_numbers() {
        let linear = Axis::linear("x");
        assert_eq!(labels(&linear, &[0.0, 1.0], 5), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&linear, &[-1.0, 2.0], 3), ["-1", "0", "1", "2"]);
        assert_eq!(labels(&linear, &[0.0, 2000.0], 4), ["0", "500", "1000", "1500", "2000"]);
        assert_eq!(labels(&linear, &[0.0, 100_000.0], 4), ["0", "50k", "100k"]);
        assert_eq!(labels(&linear, &[0.0, 2.5e6], 5), ["0", "0.5M", "1.0M", "1.5M", "2.0M", "2.5M"]);
        assert_eq!(labels(&linear, &[0.0, 3e-4], 3), ["0", "1e-4", "2e-4", "3e-4"]);
        assert_eq!(labels(&linear, &[-1e20, 1e20], 2), ["-1e20", "0", "1e20"]);
    }

    #[test]
    fn logarithmic_ticks_are_powers_of_ten_and_what_fits_between_them() {
        let log = Axis::log("x");
        assert_eq!(labels(&log, &[1e-5, 1e-2], 4), ["1e-5", "1e-4", "0.001", "0.01"]);
        assert_eq!(labels(&log, &[1.0, 100.0], 6), ["1", "2", "5", "10", "20", "50", "100"]);
        assert_eq!(labels(&log, &[1e-30, 1e30], 4), ["1e-30", "1e-15", "1", "1e15", "1e30"]);
        assert_eq!(labels(&log, &[2.0, 6.0], 4), ["2", "3", "4", "5", "6"]);
        assert_eq!(labels(&log, &[1e4, 1e6], 3), ["10k", "100k", "1M"]);
    }

    #[test]
    fn a_range_covers_what_has_a_place_and_a_margin() {
        let scaled = |axis: &Axis, values: &[f64]| Scaled::new(axis, values.iter().copied(), 0.1).unwrap();
        let range = |axis: &Axis, values: &[f64]| (scaled(axis, values).min, scaled(axis, values).max);
        let bad = [f64::NAN, f64::INFINITY, 1e308, -1e308];
        assert_eq!(range(&Axis::linear(""), &[&bad[..], &[0.0, 10.0]].concat()), (-1.0, 11.0));
        assert_eq!(range(&Axis::linear(""), &bad), (0.0, 1.0));
        assert_eq!(range(&Axis::linear(""), &[3.0]), (2.5, 3.5));
        let (min, max) = range(&Axis::log(""), &[0.0, -5.0, 1.0, 1e10]);
        assert!((min - 0.1).abs() < 1e-12 && (max - 1e11).abs() < 1.0, "{min} {max}");
        assert_eq!(range(&Axis::categories("", ["a", "b"]), &[7.0]), (-0.5, 1.5));
        for values in [&[1e300, -1e300][..], &[5e-324], &[1e-300, 1e300]] {
            for axis in [Axis::linear(""), Axis::log("")] {
                let ticks = scaled(&axis, values).ticks(5);
                assert!(ticks.len() <= 12 && ticks.iter().all(|t| t.value.is_finite()), "{values:?} {ticks:?}");
            }
        }
    }

    #[test]
    fn a_range_that_is_none_is_refused() {
        for (axis, (min, max)) in [
            (Axis::linear("loss"), (1.0, 1.0)),
            (Axis::linear("loss"), (0.0, f64::NAN)),
            (Axis::log("loss"), (0.0, 1.0)),
        ] {
            let error = Scaled::new(&axis.range(min, max), [].into_iter(), 0.0).unwrap_err();
            assert!(error.to_string().starts_with("the axis `loss` cannot go from "), "{error}");
        }
    }
}
