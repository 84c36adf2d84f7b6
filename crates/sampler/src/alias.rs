//! Vose's alias table: after a linear build, each draw costs two table look-ups, however many tokens there are.
//!
//! Source: Vose, *A linear algorithm for generating random numbers with a given distribution* (IEEE TSE, 1991). Built
//! in integers, so that the columns add up exactly and no rounding leaves a column half full.

/// One column of the table: its own token below the threshold, the other one from there on.
#[derive(Debug, Clone, Copy)]
struct Column {
    threshold: u64,
    other: u32,
}

/// A table of one distribution.
#[derive(Debug)]
pub(crate) struct AliasTable {
    columns: Vec<Column>,
    /// The height of a column: the sum of the weights as integers.
    height: u64,
}

/// Weights become integers of this scale, divided among the tokens so that their sum stays in 64 bits.
const SCALE: f64 = (1u64 << 62) as f64;

impl AliasTable {
    /// Of weights in [0, 1] whose largest is 1.
    pub(crate) fn new(weights: &[f64]) -> Self {
        let count = weights.len() as u128;
        let scale = SCALE / weights.iter().sum::<f64>();
        let integers: Vec<u64> = weights.iter().map(|&w| (w * scale) as u64).collect();
        let height: u64 = integers.iter().sum();
        // Each token has count x its integer to spread over columns of this height: as much as they hold together.
        let mut rest: Vec<u128> = integers.iter().map(|&w| u128::from(w) * count).collect();
        let mut columns: Vec<Column> =
            (0..weights.len() as u32).map(|token| Column { threshold: height, other: token }).collect();
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (token, &rest) in rest.iter().enumerate() {
            let side = if rest < u128::from(height) { &mut small } else { &mut large };
            side.push(token);
        }
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            columns[low] = Column { threshold: rest[low] as u64, other: high as u32 };
            rest[high] -= u128::from(height) - rest[low];
            if rest[high] < u128::from(height) {
                large.pop();
                small.push(high);
            }
        }
        Self { columns, height }
    }

    /// The token for 128 random bits: one half chooses the column, the other the height in it.
    pub(crate) fn draw(&self, bits: [u32; 4]) -> u32 {
        let [w0, w1, w2, w3] = bits.map(u64::from);
        let column = scaled(w1 << 32 | w0, self.columns.len() as u64);
        let Column { threshold, other } = self.columns[column as usize];
        if scaled(w3 << 32 | w2, self.height) < threshold { column as u32 } else { other }
    }
}

/// `bits / 2^64 * n`, rounded down: below n.
fn scaled(bits: u64, n: u64) -> u64 {
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of each token, from the table alone.
    fn shares(table: &AliasTable) -> Vec<f64> {
        let mut shares = vec![0.0; table.columns.len()];
        let area = table.height as f64 * table.columns.len() as f64;
        for (token, column) in table.columns.iter().enumerate() {
            shares[token] += column.threshold as f64 / area;
            shares[column.other as usize] += (table.height - column.threshold) as f64 / area;
        }
        shares
    }

    #[test]
    fn the_table_holds_exactly_the_distribution() {
        let weights: Vec<f64> = (0..1000).map(|n| if n == 7 { 1.0 } else { f64::from(n % 13) / 13.0 }).collect();
        let total: f64 = weights.iter().sum();
        for (share, weight) in shares(&AliasTable::new(&weights)).iter().zip(&weights) {
            assert!((share - weight / total).abs() < 1e-15);
        }
    }

    #[test]
    fn a_weight_of_zero_has_no_share() {
        let shares = shares(&AliasTable::new(&[0.0, 1.0, 0.0, 0.25]));
        assert_eq!((shares[0], shares[2]), (0.0, 0.0));
    }

    #[test]
    fn the_extreme_bits_stay_in_the_table() {
        let table = AliasTable::new(&[1.0, 0.0, 0.5]);
        for bits in [[0; 4], [u32::MAX; 4]] {
            assert_ne!(table.draw(bits), 1);
        }
    }
}
