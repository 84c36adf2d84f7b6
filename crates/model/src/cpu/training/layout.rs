//! The layout of the parameters in a flat buffer.

use std::ops::Range;

use crate::{
    ParamSpec, Result,
    params::check_values,
    plan::{Network, ParamId},
};

/// The floats of a cache line; each parameter starts on one.
const FLOATS_PER_LINE: usize = 16;

/// The offsets of all parameters in a flat buffer, in parameter order, each aligned to a cache line.
#[derive(Debug, Clone)]
pub struct ParamLayout {
    /// Names, shapes, roles and initial values.
    pub specs: Vec<ParamSpec>,
    /// The range of each parameter's elements in a flat buffer.
    pub ranges: Vec<Range<usize>>,
}

impl ParamLayout {
    /// The layout of a network's parameters.
    pub fn new(net: &Network) -> Self {
        Self::of(net.params().to_vec())
    }

    /// The layout of any parameters.
    pub fn of(specs: Vec<ParamSpec>) -> Self {
        let mut end = 0;
        let range = |spec: &ParamSpec| {
            let range = end..end + spec.len();
            end = range.end.next_multiple_of(FLOATS_PER_LINE);
            range
        };
        let ranges = specs.iter().map(range).collect();
        Self { specs, ranges }
    }

    /// The length of a flat buffer.
    #[expect(clippy::len_without_is_empty, reason = "no model is without parameters")]
    pub fn len(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.end.next_multiple_of(FLOATS_PER_LINE))
    }

    /// The range of a parameter.
    pub(crate) fn range(&self, param: ParamId) -> Range<usize> {
        self.ranges[param.0].clone()
    }

    /// Adds `values` to a parameter's range of a flat buffer.
    pub(crate) fn add(&self, param: ParamId, values: &[f32], flat: &mut [f32]) {
        flat[self.range(param)].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }

    /// Copies values given in parameter order into a flat buffer.
    ///
    /// # Errors
    /// When their number or lengths are not those of the parameters.
    pub fn fill(&self, values: &[Vec<f32>], flat: &mut [f32]) -> Result<()> {
        check_values(&self.specs, values)?;
        for (range, values) in self.ranges.iter().zip(values) {
            flat[range.clone()].copy_from_slice(values);
        }
        Ok(())
    }

    /// Copies the values out of a flat buffer, in parameter order.
    pub fn split(&self, flat: &[f32]) -> Vec<Vec<f32>> {
        self.ranges.iter().map(|range| flat[range.clone()].to_vec()).collect()
    }
}
