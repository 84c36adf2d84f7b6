//! Means over contexts of about the same length.

use std::ops::RangeInclusive;

use tinygpt_trainer::compare::Divergence;

/// The means over contexts of 1, 2, 3 to 4, 5 to 8, ... tokens, from those of each position.
pub fn octaves(positions: &[Divergence]) -> Vec<(RangeInclusive<usize>, Divergence)> {
    let mut octaves = Vec::new();
    let (mut from, mut to) = (0, 1);
    while from < positions.len() {
        let end = to.min(positions.len());
        octaves.push((from + 1..=end, Divergence::mean(&positions[from..end])));
        (from, to) = (end, 2 * to);
    }
    octaves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octaves_are_the_means_of_twice_as_many_positions_each() {
        let positions: Vec<_> =
            (1..=6).map(|i| Divergence { contexts: 10, kl_ab: f64::from(i), ..Default::default() }).collect();
        let octaves: Vec<_> =
            octaves(&positions).into_iter().map(|(tokens, d)| (tokens, d.contexts, d.kl_ab)).collect();
        assert_eq!(octaves, [(1..=1, 10, 1.0), (2..=2, 10, 2.0), (3..=4, 20, 3.5), (5..=6, 20, 5.5)]);
    }
}
