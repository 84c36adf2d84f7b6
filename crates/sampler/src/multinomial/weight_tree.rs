//! Successive draws without replacement: a sum tree whose drawn leaves become 0.

/// A complete binary tree over weights in which each node is the sum of its two children.
///
/// Sums are recomputed and never subtracted from, so that no error builds up and a tree without weights sums to exactly
/// 0.
#[derive(Debug)]
pub(crate) struct WeightTree {
    /// Node 1 is the root, node n has the children 2n and 2n + 1, and the first leaf is node `leaves`.
    nodes: Vec<f64>,
    leaves: usize,
}

impl WeightTree {
    /// Builds the tree of finite weights that are at least 0 and whose sum is finite.
    pub(crate) fn new(weights: &[f64]) -> Self {
        let leaves = weights.len().next_power_of_two();
        let mut nodes = vec![0.0; 2 * leaves];
        nodes[leaves..leaves + weights.len()].copy_from_slice(weights);
        for n in (1..leaves).rev() {
            nodes[n] = nodes[2 * n] + nodes[2 * n + 1];
        }
        Self { nodes, leaves }
    }

    /// Removes the weight that `u` draws and returns its index: the first whose cumulative weight exceeds `u` times the
    /// total. None if no weight is left.
    pub(crate) fn take(&mut self, u: f64) -> Option<usize> {
        if self.nodes[1] <= 0.0 {
            return None;
        }
        let mut target = u * self.nodes[1];
        let mut n = 1;
        while n < self.leaves {
            let (left, right) = (self.nodes[2 * n], self.nodes[2 * n + 1]);
            // Rounding may make the target as large as the node; a child without weight is never entered.
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
