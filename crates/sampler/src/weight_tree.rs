//! Successive draws without replacement: a tree of sums from which leaves are removed.

/// A complete binary tree over weights; each node is the sum of its two children, recomputed and never subtracted, so
/// that no error builds up and a tree without weights is exactly 0.
#[derive(Debug)]
pub(crate) struct WeightTree {
    /// Node n has children 2n and 2n + 1; the leaves start at `leaves`.
    nodes: Vec<f64>,
    leaves: usize,
}

impl WeightTree {
    /// Of finite weights that are not negative and whose sum is finite.
    pub(crate) fn new(weights: &[f64]) -> Self {
        let leaves = weights.len().next_power_of_two();
        let mut nodes = vec![0.0; 2 * leaves];
        nodes[leaves..leaves + weights.len()].copy_from_slice(weights);
        for n in (1..leaves).rev() {
            nodes[n] = nodes[2 * n] + nodes[2 * n + 1];
        }
        Self { nodes, leaves }
    }

    /// The first index whose cumulative weight exceeds `u` x total, removed; none if no weight is left.
    pub(crate) fn take(&mut self, u: f64) -> Option<usize> {
        if self.nodes[1] <= 0.0 {
            return None;
        }
        let mut target = u * self.nodes[1];
        let mut n = 1;
        while n < self.leaves {
            let (left, right) = (self.nodes[2 * n], self.nodes[2 * n + 1]);
            // Rounding may leave a target of a whole node: never step into one without weight.
            if (target < left && left > 0.0) || right <= 0.0 {
                n *= 2;
            } else {
                target -= left;
                n = 2 * n + 1;
            }
        }
        let index = n - self.leaves;
        self.nodes[n] = 0.0;
        while n > 1 {
            n /= 2;
            self.nodes[n] = self.nodes[2 * n] + self.nodes[2 * n + 1];
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_weight_is_taken_once_and_a_zero_never() {
        let mut tree = WeightTree::new(&[0.0, 1.0, 0.0, 2.0, 3.0]);
        let mut taken: Vec<usize> = std::iter::from_fn(|| tree.take(1.0 - f64::EPSILON)).collect();
        taken.sort_unstable();
        assert_eq!(taken, [1, 3, 4]);
    }

    #[test]
    fn the_first_draw_is_the_inverse_cdf() {
        for (u, index) in [(0.0, 0), (0.09, 0), (0.1, 1), (0.49, 1), (0.5, 3), (0.999, 3)] {
            assert_eq!(WeightTree::new(&[1.0, 4.0, 0.0, 5.0]).take(u), Some(index), "{u}");
        }
    }

    #[test]
    fn a_single_weight_is_a_tree() {
        let mut tree = WeightTree::new(&[0.5]);
        assert_eq!((tree.take(0.7), tree.take(0.7)), (Some(0), None));
    }
}
