//! A part of a corpus: what trains, or what is held out, by documents.

/// Which documents of a corpus are read. Both parts are spread evenly over it, and depend on nothing but the share: neither on the
/// seed nor on what the documents say.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Part {
    /// All of them.
    #[default]
    Whole,
    /// All but this share, which is that of [`Part::HeldOut`].
    Training(f64),
    /// This share of them: the `n`th for each `n` whose product with the share passes a whole number.
    HeldOut(f64),
}

impl Part {
    /// Whether document `n` of the corpus, counted from 0, is one of the part.
    pub(super) fn has(self, n: u64) -> bool {
        let is_held_out = |share: f64| (share * (n + 1) as f64).floor() > (share * n as f64).floor();
        match self {
            Self::Whole => true,
            Self::Training(share) => !is_held_out(share),
            Self::HeldOut(share) => is_held_out(share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_in_one_of_both_parts_and_those_held_out_are_spread_evenly() {
        for share in [0.1, 0.25, 0.3, 0.9] {
            let held_out: Vec<u64> = (0..1000).filter(|&n| Part::HeldOut(share).has(n)).collect();
            assert!((held_out.len() as f64 - 1000.0 * share).abs() <= 1.0, "{share}: {}", held_out.len());
            assert!(
                (0..1000).all(|n| Part::HeldOut(share).has(n) != Part::Training(share).has(n) && Part::Whole.has(n))
            );
            let gaps = held_out.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(gaps.clone().max().unwrap() - gaps.min().unwrap() <= 1, "{share}");
        }
        assert_eq!((0..8).filter(|&n| Part::HeldOut(0.25).has(n)).collect::<Vec<_>>(), [3, 7]);
    }
}
