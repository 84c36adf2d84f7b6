//! Vose's alias table: draws in constant time after a build in linear time.
//!
//! The weights become integers, so that the columns add up exactly and rounding leaves no column partly filled.
//!
//! Source: Vose, *A linear algorithm for generating random numbers with a given distribution* (IEEE TSE, 1991).

/// One column of the table. Heights below the threshold are the token of the column, the others its alias.
#[derive(Debug, Clone, Copy)]
struct Column {
    threshold: u64,
    alias: u32,
}

/// The alias table of one distribution.
#[derive(Debug)]
pub(crate) struct AliasTable {
    columns: Vec<Column>,
    /// The height of every column: the sum of the integer weights.
    height: u64,
}

/// The sum of the integer weights, but for rounding. Below `2^64`.
const INTEGER_TOTAL: f64 = (1u64 << 62) as f64;

impl AliasTable {
    /// Builds the table of weights in `[0, 1]` whose largest is 1.
    pub(crate) fn new(weights: &[f64]) -> Self {
        let count = weights.len() as u128;
        let scale = INTEGER_TOTAL / weights.iter().sum::<f64>();
        let integers: Vec<u64> = weights.iter().map(|&w| (w * scale) as u64).collect();
        let height: u64 = integers.iter().sum();
        // Scaled by the count, the integers of all tokens fill all columns exactly.
        let mut unplaced: Vec<u128> = integers.iter().map(|&w| u128::from(w) * count).collect();
        let mut columns: Vec<Column> =
            (0..weights.len() as u32).map(|token| Column { threshold: height, alias: token }).collect();
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (token, &amount) in unplaced.iter().enumerate() {
            let side = if amount < u128::from(height) { &mut small } else { &mut large };
            side.push(token);
        }
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            columns[low] = Column { threshold: unplaced[low] as u64, alias: high as u32 };
            unplaced[high] -= u128::from(height) - unplaced[low];
            if unplaced[high] < u128::from(height) {
                large.pop();
                small.push(high);
            }
        }
        Self { columns, height }
    }

    /// The token of 128 random bits: the lower half chooses the column, the upper half the height in it.
    pub(crate) fn draw(&self, bits: [u32; 4]) -> u32 {
        let [w0, w1, w2, w3] = bits.map(u64::from);
        let column = multiply_high(w1 << 32 | w0, self.columns.len() as u64);
        let Column { threshold, alias } = self.columns[column as usize];
        if multiply_high(w3 << 32 | w2, self.height) < threshold { column as u32 } else { alias }
    }
}

/// `floor(bits * n / 2^64)`, which is below n.
fn multiply_high(bits: u64, n: u64) -> u64 {
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The probability of each token, computed from the table.
    fn probabilities(table: &AliasTable) -> Vec<f64> {
        let mut probs = vec![0.0; table.columns.len()];
        let area = table.height as f64 * table.columns.len() as f64;
        for (token, column) in table.columns.iter().enumerate() {
            probs[token] += column.threshold as f64 / area;
            probs[column.alias as usize] += (table.height - column.threshold) as f64 / area;
        }
        probs
    }

    #[test]
    fn the_table_holds_exactly_the_distribution() {
        let weights: Vec<f64> = (0..1000).map(|n| if n == 7 { 1.0 } else { f64::from(n % 13) / 13.0 }).collect();
        let total: f64 = weights.iter().sum();
        for (prob, weight) in probabilities(&AliasTable::new(&weights)).iter().zip(&weights) {
            assert!((prob - weight / total).abs() < 1e-15);
        }
    }

    #[test]
    fn a_weight_of_zero_has_no_share() {
        let probs = probabilities(&AliasTable::new(&[0.0, 1.0, 0.0, 0.25]));
        assert_eq!((probs[0], probs[2]), (0.0, 0.0));
    }

    #[test]
    fn the_extreme_bits_stay_in_the_table() {
        let table = AliasTable::new(&[1.0, 0.0, 0.5]);
        for bits in [[0; 4], [u32::MAX; 4]] {
            assert_ne!(table.draw(bits), 1);
        }
    }
}
