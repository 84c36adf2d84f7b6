//! The heads of attention.

/// The heads of attention. A position has queries, keys and values side by side: `(n_head + 2 n_kv_head) * head_size`
/// channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub n_head: usize,
    /// Heads of keys and of values; divides `n_head`.
    pub n_kv_head: usize,
    /// The channels of a head.
    pub head_size: usize,
}

impl Heads {
    /// The channels of queries, keys and values.
    pub fn qkv(self) -> [usize; 3] {
        [self.n_head, self.n_kv_head, self.n_kv_head].map(|heads| heads * self.head_size)
    }

    /// The head of keys and values that a head of queries attends to.
    pub fn kv_head(self, head: usize) -> usize {
        head * self.n_kv_head / self.n_head
    }
}
