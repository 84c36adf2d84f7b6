//! When a limit counts as found: when two looks at it, with something else in between, agree. Whatever else runs on the
//! machine lowers a look, so that one alone may be half of the limit, and shares of it twice the truth.

/// The largest difference between two looks at an arithmetic peak that agree, as a share of the larger.
pub const ARITHMETIC: f64 = 0.03;
/// The same for the reading rate, which varies from second to second on a machine that is shared.
pub const READING: f64 = 0.1;
/// The most looks at a limit; then it cannot be measured now.
const MOST_LOOKS: usize = 8;

/// Whether two looks agree.
pub fn agree([a, b]: [f64; 2], tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * a.max(b)
}

/// The looks at a limit so far.
#[derive(Debug, Clone)]
pub struct Looks {
    tolerance: f64,
    looks: Vec<f64>,
}

impl Looks {
    /// No looks yet; two agree where they differ by at most this share of the larger.
    pub fn new(tolerance: f64) -> Self {
        Self { tolerance, looks: Vec::new() }
    }

    /// Adds a look.
    pub fn add(&mut self, rate: f64) {
        self.looks.push(rate);
    }

    /// The limit: the largest look, if another one agrees with it. A single high look proves nothing either.
    pub fn limit(&self) -> Option<f64> {
        let mut falling = self.looks.clone();
        falling.sort_by(|a, b| b.total_cmp(a));
        match falling[..] {
            [largest, second, ..] if agree([largest, second], self.tolerance) => Some(largest),
            _ => None,
        }
    }

    /// Whether another look may help: the limit is not found yet, and there were not too many looks.
    pub fn wanted(&self) -> bool {
        self.limit().is_none() && self.looks.len() < MOST_LOOKS
    }

    /// Looks until the limit is found; `None` where it cannot be measured now.
    pub fn until_found(&mut self, mut look: impl FnMut() -> f64) -> Option<f64> {
        while self.wanted() {
            self.add(look());
        }
        self.limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found of looks that give these rates in turn, and how many were needed.
    fn found(rates: &[f64]) -> (Option<f64>, usize) {
        let mut looks = Looks::new(ARITHMETIC);
        let mut rates = rates.iter();
        let limit = looks.until_found(|| *rates.next().expect("no more looks than needed"));
        (limit, looks.looks.len())
    }

    #[test]
    fn two_looks_that_agree_are_enough_and_the_larger_counts() {
        assert_eq!(found(&[100.0, 98.0]), (Some(100.0), 2));
        assert_eq!(found(&[98.0, 100.0]), (Some(100.0), 2));
    }

    #[test]
    fn a_look_in_the_shadow_of_another_process_does_not_count() {
        assert_eq!(found(&[50.0, 100.0, 99.0]), (Some(100.0), 3));
        assert_eq!(found(&[100.0, 50.0, 70.0, 99.0]), (Some(100.0), 4));
    }

    #[test]
    fn two_low_looks_that_agree_do_not_count_beside_a_higher_one() {
        assert_eq!(found(&[50.0, 100.0, 50.0, 50.0, 98.0]), (Some(100.0), 5));
        let mut looks = Looks::new(ARITHMETIC);
        [50.0, 100.0, 50.0].into_iter().for_each(|rate| looks.add(rate));
        assert_eq!(looks.limit(), None);
    }

    #[test]
    fn looks_that_never_agree_end_without_a_limit() {
        assert_eq!(found(&[50.0, 100.0, 60.0, 70.0, 80.0, 90.0, 40.0, 30.0]), (None, MOST_LOOKS));
        assert_eq!(Looks::new(READING).limit(), None);
    }

    #[test]
    fn rates_agree_within_the_tolerance_of_the_larger() {
        assert!(agree([90.0, 100.0], READING) && agree([100.0, 90.0], READING) && !agree([89.0, 100.0], READING));
    }
}
