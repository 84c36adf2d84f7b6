//! The discounts of Kneser-Ney smoothing.

use tinygpt_model::ngram::{MIN_DISCOUNT, NgramCounts, NgramModel, Smoothing};

use crate::{Result, data::Split};

/// The discounts of n-grams whose counts tell none: of too small a corpus, or of one in which nothing is rare, as characters.
const FALLBACK: [f64; 3] = [0.5, 1.0, 1.5];

/// The model of the counts of a split.
///
/// # Errors
/// When the split cannot be read, or the counts are not its own.
pub fn model(counts: &NgramCounts, split: &Split) -> Result<NgramModel> {
    let mut start = vec![0; split.len().min(counts.order() - 1)];
    split.read(0, &mut start)?;
    let counts = counts.continuation(&start)?;
    let discounts = (1..=counts.order()).map(|n| discounts(counts.counts(n))).collect();
    Ok(NgramModel::new(counts, Smoothing::KneserNey { discounts })?)
}

/// The three discounts of Chen and Goodman (1999) for the counts of one length: `D_j = j - (j + 1) Y n_(j+1) / n_j` with
/// `Y = n_1 / (n_1 + 2 n_2)`, where `n_j` n-grams have a count of `j`. [`FALLBACK`] where one of the four numbers is 0, or a
/// discount is less than [`MIN_DISCOUNT`], as numbers that do not fall with `j` give it.
fn discounts(counts: &[u32]) -> [f64; 3] {
    let mut n = [0_u64; 5];
    for &count in counts.iter().filter(|&&count| count <= 4) {
        n[count as usize] += 1;
    }
    if n[1..].contains(&0) {
        return FALLBACK;
    }
    let n = n.map(|n| n as f64);
    let y = n[1] / (n[1] + 2.0 * n[2]);
    let discounts = [1, 2, 3].map(|j| j as f64 - (j + 1) as f64 * y * n[j + 1] / n[j]);
    if discounts.iter().any(|&d| d < MIN_DISCOUNT) { FALLBACK } else { discounts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discounts_are_those_of_chen_and_goodman() {
        // n_1 = 8, n_2 = 4, n_3 = 2, n_4 = 1: Y = 1/2, D_1 = 1 - 1/2, D_2 = 2 - 3/4, D_3 = 3 - 1.
        let counts: Vec<u32> = [(1, 8), (2, 4), (3, 2), (4, 1), (9, 5)].iter().flat_map(|&(c, n)| vec![c; n]).collect();
        assert_eq!(discounts(&counts), [0.5, 1.25, 2.0]);
    }

    #[test]
    fn counts_that_tell_no_discount_have_the_fallback() {
        assert_eq!(discounts(&[]), FALLBACK);
        assert_eq!(discounts(&[1, 1, 2, 3]), FALLBACK, "nothing occurs four times");
        assert_eq!(discounts(&[1, 2, 3, 3, 3, 3, 3, 3, 4]), FALLBACK, "D_2 is below 0");
    }
}
