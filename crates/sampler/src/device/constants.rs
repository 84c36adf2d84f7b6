//! The scale of the integer weights, and what is returned in the place of a token.

/// The integer weight of the largest logit, `2^40`.
pub(super) const MAX_WEIGHT: f64 = 1_099_511_627_776.0;
/// Returned in the place of a token: none can be drawn from the row, or the row may have a NaN.
pub(super) const NO_TOKEN: u32 = u32::MAX;
/// Returned in the place of a token: the candidates do not hold the nucleus, which has to be searched for.
pub(super) const NEEDS_SEARCH: u32 = u32::MAX - 1;
