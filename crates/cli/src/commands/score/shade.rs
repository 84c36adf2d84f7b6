//! Six shades for how surprising a token is. They differ in lightness alone, so that the colour-blind tell them apart.

/// Where a shade begins, in bits of surprisal.
pub const FROM_BITS: [f64; SHADES] = [0.0, 1.0, 2.0, 4.0, 6.0, 8.0];

/// How many there are.
pub const SHADES: usize = 6;

/// The number of a token's shade.
pub fn shade(bits: f64) -> usize {
    FROM_BITS.iter().rposition(|&from| bits >= from).unwrap_or(0)
}

/// What a shade stands for.
pub fn legend(shade: usize) -> String {
    match FROM_BITS.get(shade + 1) {
        Some(to) => format!("{}-{to}", FROM_BITS[shade]),
        None => format!("{}+", FROM_BITS[shade]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shade_begins_where_its_legend_says() {
        assert_eq!([0.0, 0.99, 1.0, 3.9, 7.9, 8.0, f64::INFINITY].map(shade), [0, 0, 1, 2, 4, 5, 5]);
        assert_eq!((0..SHADES).map(legend).collect::<Vec<_>>(), ["0-1", "1-2", "2-4", "4-6", "6-8", "8+"]);
    }
}
