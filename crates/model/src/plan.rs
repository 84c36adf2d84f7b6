//! A network as a list of typed operations over values and parameters, which [`network()`](crate::network()) builds and every
//! backend executes.
//!
//! A [`Value`] is the result of one operation: `(T, channels)` for a sequence. A parameter has a [`Role`], which determines
//! weight decay and what a step of generation reads. FLOPs, the memory of training and the bytes read per token are sums
//! over the list.
//!
//! This file and `ops/` depend on each other by design: a network is a list of the enum `Op`, and each operation's file adds
//! its method to [`NetworkBuilder`].

use crate::{
    GptConfig,
    ops::{Head, Op},
};

/// The result of an operation: `(T, channels)` for a sequence of `T` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub(crate) usize);

/// A parameter, by its place in parameter order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamId(pub(crate) usize);

/// The role of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The token embedding, `(V, C)`, which is also the matrix of a tied head.
    Embedding,
    /// The position embedding, `(block_size, C)`.
    Position,
    /// The matrix of an untied head, `(V, C)`.
    Head,
    /// The weights of a linear layer, `(in, out)`, or of several that read the same input, side by side.
    Matrix,
    /// The weights of a norm, `(C)`.
    Norm,
    /// The bias of a linear layer or a norm, `(out)`.
    Bias,
}

/// The initial distribution of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Gaussian with mean 0 and this standard deviation.
    Normal(f64),
    /// All ones (weights of norms).
    Ones,
    /// All zeros (biases).
    Zeros,
}

/// One parameter: its name (Hugging Face's GPT-2 name), shape, role and initial distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// For example `transformer.h.0.attn.c_attn.weight`.
    pub name: String,
    /// The shape; matrices are `(in, out)`.
    pub shape: Vec<usize>,
    /// Its role in the network.
    pub role: Role,
    /// The initial distribution.
    pub init: Init,
    /// For weights of linear layers, the columns of each layer: three for queries, keys and values side by side.
    pub parts: Vec<usize>,
}

impl ParamSpec {
    /// The number of elements.
    #[expect(clippy::len_without_is_empty, reason = "no parameter is empty")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether weight decay applies: to embeddings, positions and matrices, not to norms and biases.
    pub fn decays(&self) -> bool {
        matches!(self.role, Role::Embedding | Role::Position | Role::Head | Role::Matrix)
    }
}

/// A network: parameters, operations in the order of execution, and the head.
#[derive(Debug, Clone)]
pub struct Network {
    pub(crate) config: GptConfig,
    /// In parameter order, that in which the network adds them.
    pub(crate) params: Vec<ParamSpec>,
    /// In the order of execution.
    pub(crate) ops: Vec<Op>,
    /// The number of parameters up to those of each operation.
    pub(crate) param_ends: Vec<usize>,
    pub(crate) head: Head,
    /// The number of channels of each value.
    pub(crate) cols: Vec<usize>,
}

impl Network {
    /// The configuration of the model.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// Every parameter, in parameter order.
    pub fn params(&self) -> &[ParamSpec] {
        &self.params
    }

    /// The names of its operations (`ops::OPERATION_NAMES`), in their order.
    #[doc(hidden)]
    pub fn operation_names(&self) -> Vec<&'static str> {
        self.ops.iter().map(Op::name).collect()
    }

    /// The number of channels of a value.
    pub(crate) fn cols(&self, value: Value) -> usize {
        self.cols[value.0]
    }

    /// The index of the operation that reads each value last; for the head's input, the number of operations.
    pub(crate) fn last_readers(&self) -> Vec<usize> {
        let mut last = vec![0; self.cols.len()];
        for (at, op) in self.ops.iter().enumerate() {
            for value in op.get().inputs() {
                last[value.0] = at;
            }
        }
        last[self.head.x.0] = self.ops.len();
        last
    }

    /// The multiply-adds of all products in the forward pass of one sequence of `t` positions.
    pub fn multiply_adds(&self, t: usize) -> f64 {
        self.ops.iter().map(|op| op.get().multiply_adds(self, t)).sum::<f64>() + self.head.multiply_adds(self, t)
    }

    /// The FLOPs of the products of one update with `rows` windows of `t` tokens. A multiply-add is two, and the backward
    /// pass computes two products for each of the forward pass, one for the gradient of either operand. Not counted are
    /// norms, activations, softmax, the optimizer, and what a backend recomputes to save memory.
    pub fn flops_of_update(&self, rows: usize, t: usize) -> f64 {
        2.0 * 3.0 * rows as f64 * self.multiply_adds(t)
    }

    /// The number of parameter elements that a step of generation reads, whatever the number of sequences: all but the
    /// embedding tables, of which it reads single rows.
    pub(crate) fn params_of_a_step(&self) -> usize {
        let is_lookup_table = |at: usize, spec: &ParamSpec| {
            spec.role == Role::Position || spec.role == Role::Embedding && at != self.head.weight.0
        };
        self.params
            .iter()
            .enumerate()
            .filter(|(at, spec)| !is_lookup_table(*at, spec))
            .map(|(_, spec)| spec.len())
            .sum()
    }

    /// The matrices that products read: those of linear layers and of the head.
    pub(crate) fn matmul_params(&self) -> impl Iterator<Item = ParamId> {
        let matrix = |(at, spec): (usize, &ParamSpec)| {
            (spec.role == Role::Matrix || at == self.head.weight.0).then_some(ParamId(at))
        };
        self.params.iter().enumerate().filter_map(matrix)
    }
}

/// Builds a network, operation by operation. Each operation's file adds a method.
#[derive(Debug)]
pub struct NetworkBuilder {
    pub(crate) config: GptConfig,
    pub(crate) params: Vec<ParamSpec>,
    pub(crate) ops: Vec<Op>,
    pub(crate) param_ends: Vec<usize>,
    pub(crate) cols: Vec<usize>,
}

impl NetworkBuilder {
    /// Starts the network of a configuration.
    pub fn new(config: &GptConfig) -> Self {
        Self { config: config.clone(), params: Vec::new(), ops: Vec::new(), param_ends: Vec::new(), cols: Vec::new() }
    }

    /// Adds a parameter.
    pub(crate) fn param(&mut self, name: String, shape: &[usize], role: Role, init: Init) -> ParamId {
        self.params.push(ParamSpec { name, shape: shape.to_vec(), role, init, parts: Vec::new() });
        ParamId(self.params.len() - 1)
    }

    /// Adds the bias `(n)` of a module if the configuration has biases.
    pub(crate) fn bias(&mut self, module: &str, n: usize) -> Option<ParamId> {
        self.config.bias.then(|| self.param(format!("{module}.bias"), &[n], Role::Bias, Init::Zeros))
    }

    /// Adds a value of `cols` channels.
    pub(crate) fn value(&mut self, cols: usize) -> Value {
        self.cols.push(cols);
        Value(self.cols.len() - 1)
    }

    /// Adds an operation and returns its result.
    pub(crate) fn push(&mut self, op: impl Into<Op>) -> Value {
        let op = op.into();
        self.param_ends.push(self.params.len());
        let output = op.get().output();
        self.ops.push(op);
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mlp, network};

    fn shape(n_layer: usize, n_embd: usize, vocab_size: usize) -> GptConfig {
        let mlp = Mlp::Gelu;
        GptConfig {
            vocab_size,
            block_size: 64,
            n_layer,
            n_head: 1,
            n_embd,
            dropout: 0.0,
            bias: false,
            mlp,
            ..GptConfig::default()
        }
    }

    /// Counts the multiply-adds of the forward pass one by one: for each matrix element and token, and for each query and
    /// key that it attends to.
    fn counted(config: &GptConfig, rows: usize, t: usize) -> usize {
        let net = network(config);
        let elements: usize = net.matmul_params().map(|param| net.params[param.0].len()).sum();
        let pairs: usize = (0..t).map(|query| (0..t).filter(|&key| key <= query).count()).sum();
        rows * (t * elements + config.n_layer * pairs * 2 * config.n_embd)
    }

    #[test]
    fn the_operations_count_what_their_products_do() {
        for (config, rows, t) in
            [(shape(1, 1, 2), 1, 1), (shape(2, 6, 11), 3, 5), (shape(4, 128, 65), 12, 64), (shape(3, 32, 500), 2, 17)]
        {
            assert_eq!(network(&config).flops_of_update(rows, t), 6.0 * counted(&config, rows, t) as f64);
        }
    }

    #[test]
    fn an_update_of_small_is_3_8_gflop() {
        assert_eq!(network(&shape(4, 128, 65)).flops_of_update(12, 64), 3_815_571_456.0);
    }

    #[test]
    fn a_step_of_generation_reads_all_but_the_tables_of_which_it_picks_rows() {
        let config = shape(4, 128, 65);
        assert_eq!(network(&config).params_of_a_step(), config.n_params() - 64 * 128);
    }
}
