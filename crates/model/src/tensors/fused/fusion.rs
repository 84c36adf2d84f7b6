//! The fusion of a network's operations into the launches of one new position: a norm goes into the product that reads it, an
//! activation and a residual sum into the product before them, the norms and the rotation of queries and keys into attention.

use std::sync::Arc;

use crate::{
    config::{Heads, Norm},
    ops::{
        Angles, Op,
        kernels::decode::{Epilogue, MAX_HEAD_SIZE, MAX_INPUTS, MAX_OUTPUTS, MAX_TOKENS},
    },
    plan::{Network, ParamId, Value},
};

/// The rows that a product reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Input {
    pub(crate) x: Value,
    /// The norm of each row.
    pub(crate) norm: Option<InputNorm>,
}

/// A norm: its kind, epsilon, weight and bias.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InputNorm {
    pub(crate) kind: Norm,
    pub(crate) eps: f64,
    pub(crate) weight: ParamId,
    pub(crate) bias: Option<ParamId>,
}

/// `y = residual + epilogue(x w + bias)`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Product {
    pub(crate) input: Input,
    pub(crate) weight: ParamId,
    pub(crate) bias: Option<ParamId>,
    pub(crate) epilogue: Epilogue,
    pub(crate) residual: Option<Value>,
    pub(crate) y: Value,
}

/// Queries, keys and values that attention reads.
#[derive(Debug, Clone)]
pub(crate) struct Qkv {
    pub(crate) x: Value,
    /// The weights of the norms of queries and keys, and their epsilon.
    pub(crate) norm: Option<([ParamId; 2], f64)>,
    /// The angles of rotary positions.
    pub(crate) angles: Option<Arc<Angles>>,
}

/// A launch of a kernel.
#[derive(Debug, Clone)]
pub(crate) enum Launch {
    /// The embeddings of tokens and positions.
    Embed { table: ParamId, positions: Option<ParamId>, y: Value },
    /// A product.
    Product(Product),
    /// The attention of a layer.
    Attention { qkv: Qkv, heads: Heads, layer: usize, y: Value },
}

impl Launch {
    fn output(&self) -> Value {
        match self {
            Self::Embed { y, .. } | Self::Attention { y, .. } => *y,
            Self::Product(product) => product.y,
        }
    }

    fn inputs(&self) -> Vec<Value> {
        match self {
            Self::Embed { .. } => Vec::new(),
            Self::Product(product) => [product.input.x].into_iter().chain(product.residual).collect(),
            Self::Attention { qkv, .. } => vec![qkv.x],
        }
    }
}

/// How a value is had.
#[derive(Debug, Clone)]
enum Form {
    /// In memory, as the output of a launch that is named here.
    Stored(Value),
    /// Computed by the product that reads it.
    Input(Input),
    /// Computed by the attention that reads it.
    Qkv(Qkv),
}

/// The launches of one new position of each row: those below, and the logits.
#[derive(Debug)]
pub(crate) struct FusedNetwork {
    pub(crate) launches: Vec<Launch>,
    /// The rows that the head reads.
    pub(crate) head: Input,
    /// The channels of each buffer. Values share those that are not needed at the same time.
    pub(crate) buffers: Vec<usize>,
    /// The buffer of each value, 0 for those that no launch writes.
    pub(crate) buffer_of: Vec<usize>,
}

impl FusedNetwork {
    /// Nothing where an operation neither has a kernel nor joins one.
    pub(crate) fn new(net: &Network) -> Option<Self> {
        let mut fusion = Fusion::new(net);
        for op in net.ops.iter().map(Op::get) {
            op.fuse(&mut fusion)?;
        }
        let head = fusion.input(net.head.x)?;
        (net.cols(head.x) <= MAX_INPUTS && net.config.vocab_size <= MAX_TOKENS).then_some(())?;
        let (buffers, buffer_of) = assign_buffers(net, &fusion.launches, &head);
        Some(Self { launches: fusion.launches, head, buffers, buffer_of })
    }
}

/// The launches so far, to which operations add.
#[derive(Debug)]
pub(crate) struct Fusion<'a> {
    net: &'a Network,
    launches: Vec<Launch>,
    /// Of each value.
    forms: Vec<Option<Form>>,
    /// How many operations, or the head, read each value.
    readers: Vec<usize>,
}

impl<'a> Fusion<'a> {
    fn new(net: &'a Network) -> Self {
        let mut readers = vec![0; net.cols.len()];
        for value in net.ops.iter().flat_map(|op| op.get().inputs()).chain([net.head.x]) {
            readers[value.0] += 1;
        }
        Self { net, launches: Vec::new(), forms: vec![None; net.cols.len()], readers }
    }

    fn set(&mut self, value: Value, form: Form) -> Option<()> {
        self.forms[value.0] = Some(form);
        Some(())
    }

    fn launch(&mut self, launch: Launch) -> Option<()> {
        let y = launch.output();
        self.launches.push(launch);
        self.set(y, Form::Stored(y))
    }

    fn stored(&self, value: Value) -> Option<Value> {
        match self.forms[value.0] {
            Some(Form::Stored(at)) => Some(at),
            _ => None,
        }
    }

    fn input(&self, value: Value) -> Option<Input> {
        match self.forms[value.0].clone()? {
            Form::Stored(x) => Some(Input { x, norm: None }),
            Form::Input(input) => Some(input),
            Form::Qkv(_) => None,
        }
    }

    fn qkv(&self, value: Value) -> Option<Qkv> {
        match self.forms[value.0].clone()? {
            Form::Stored(x) => Some(Qkv { x, norm: None, angles: None }),
            Form::Qkv(qkv) => Some(qkv),
            Form::Input(_) => None,
        }
    }

    /// The last launch, if it writes this value and nothing else will read it than the operation that asks.
    fn last_writer(&mut self, value: Value) -> Option<&mut Launch> {
        let at = self.stored(value)?;
        let once = self.readers[value.0] == 1 && self.readers[at.0] == 1;
        self.launches.last_mut().filter(|launch| once && launch.output() == at)
    }

    /// A value that is another.
    pub(crate) fn identity(&mut self, x: Value, y: Value) -> Option<()> {
        let form = self.forms[x.0].clone()?;
        self.set(y, form)
    }

    /// The embeddings of tokens.
    pub(crate) fn embed(&mut self, table: ParamId, y: Value) -> Option<()> {
        self.launch(Launch::Embed { table, positions: None, y })
    }

    /// The addition of position embeddings, to those of tokens.
    pub(crate) fn add_positions(&mut self, x: Value, table: ParamId, sum: Value) -> Option<()> {
        let Launch::Embed { positions, y, .. } = self.last_writer(x)? else { return None };
        if positions.replace(table).is_some() {
            return None;
        }
        *y = sum;
        self.set(sum, Form::Stored(sum))
    }

    /// A norm, which the products that read it compute.
    pub(crate) fn norm(&mut self, x: Value, norm: InputNorm, y: Value) -> Option<()> {
        let x = self.stored(x)?;
        self.set(y, Form::Input(Input { x, norm: Some(norm) }))
    }

    /// A linear layer.
    pub(crate) fn product(&mut self, x: Value, weight: ParamId, bias: Option<ParamId>, y: Value) -> Option<()> {
        let input = self.input(x)?;
        (self.net.cols(y) <= MAX_OUTPUTS).then_some(())?;
        self.launch(Launch::Product(Product { input, weight, bias, epilogue: Epilogue::None, residual: None, y }))
    }

    /// A function of the outputs of the product before it.
    pub(crate) fn epilogue(&mut self, x: Value, epilogue: Epilogue, y: Value) -> Option<()> {
        let Launch::Product(product) = self.last_writer(x)? else { return None };
        if product.epilogue != Epilogue::None || product.residual.is_some() {
            return None;
        }
        (product.epilogue, product.y) = (epilogue, y);
        self.set(y, Form::Stored(y))
    }

    /// The addition of the product before it, `y`, to a residual stream `x`.
    pub(crate) fn add(&mut self, x: Value, y: Value, sum: Value) -> Option<()> {
        let x = self.stored(x)?;
        let Launch::Product(product) = self.last_writer(y)? else { return None };
        if product.y == x || product.residual.replace(x).is_some() {
            return None;
        }
        product.y = sum;
        self.set(sum, Form::Stored(sum))
    }

    /// The norms of queries and keys, with their weights and their epsilon.
    pub(crate) fn qk_norm(&mut self, x: Value, norm: ([ParamId; 2], f64), y: Value) -> Option<()> {
        let qkv = self.qkv(x)?;
        // The kernel norms before it rotates.
        if qkv.norm.is_some() || qkv.angles.is_some() {
            return None;
        }
        self.set(y, Form::Qkv(Qkv { norm: Some(norm), ..qkv }))
    }

    /// The rotation of queries and keys.
    pub(crate) fn rope(&mut self, x: Value, angles: Arc<Angles>, y: Value) -> Option<()> {
        let qkv = self.qkv(x)?;
        if qkv.angles.is_some() {
            return None;
        }
        self.set(y, Form::Qkv(Qkv { angles: Some(angles), ..qkv }))
    }

    /// The attention of a layer.
    pub(crate) fn attention(&mut self, qkv: Value, heads: Heads, layer: usize, y: Value) -> Option<()> {
        let qkv = self.qkv(qkv)?;
        (heads.head_size <= MAX_HEAD_SIZE).then_some(())?;
        self.launch(Launch::Attention { qkv, heads, layer, y })
    }
}

/// The channels of each buffer, and the buffer of each value.
fn assign_buffers(net: &Network, launches: &[Launch], head: &Input) -> (Vec<usize>, Vec<usize>) {
    let mut last_reader = vec![0; net.cols.len()];
    for (at, launch) in launches.iter().enumerate() {
        for value in launch.inputs() {
            last_reader[value.0] = at;
        }
    }
    last_reader[head.x.0] = launches.len();
    let (mut buffers, mut free, mut buffer_of) = (Vec::new(), Vec::new(), vec![0; net.cols.len()]);
    for (at, launch) in launches.iter().enumerate() {
        let y = launch.output();
        let cols = net.cols(y);
        // An output is given its buffer before those of the inputs are free: blocks still read them.
        let buffer = match free.iter().position(|&buffer: &usize| buffers[buffer] == cols) {
            Some(found) => free.swap_remove(found),
            None => {
                buffers.push(cols);
                buffers.len() - 1
            }
        };
        buffer_of[y.0] = buffer;
        let mut done: Vec<_> = launch.inputs().into_iter().filter(|value| last_reader[value.0] == at).collect();
        done.dedup();
        free.extend(done.into_iter().map(|value| buffer_of[value.0]));
    }
    (buffers, buffer_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GptConfig, Mlp, config::Position, network, plan::NetworkBuilder};

    fn shape() -> GptConfig {
        GptConfig { vocab_size: 11, block_size: 7, n_layer: 3, n_head: 2, n_embd: 8, ..GptConfig::default() }
    }

    #[test]
    fn every_block_is_five_launches() {
        for norm in [Norm::Layer, Norm::Rms] {
            for mlp in [Mlp::Gelu, Mlp::GeluNew, Mlp::Relu2, Mlp::Swiglu] {
                for position in [Position::Learned, Position::Rope] {
                    for (bias, qk_norm, n_kv_head) in [(false, false, 2), (true, true, 1)] {
                        let config = GptConfig { norm, mlp, position, bias, qk_norm, n_kv_head, ..shape() };
                        let fused = FusedNetwork::new(&network(&config)).unwrap();
                        assert_eq!(fused.launches.len(), 1 + 5 * config.n_layer, "{config:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn vocabularies_and_products_are_as_large_as_a_grid_has_blocks() {
        let suits = |config: &GptConfig| FusedNetwork::new(&network(config)).is_some();
        for (vocab_size, expected) in [(262_144, true), (MAX_TOKENS, true), (MAX_TOKENS + 1, false)] {
            assert_eq!(suits(&GptConfig { vocab_size, ..shape() }), expected, "{vocab_size} tokens");
        }
        for (mlp_hidden, expected) in [(MAX_OUTPUTS, true), (MAX_OUTPUTS + 1, false)] {
            assert_eq!(suits(&GptConfig { mlp_hidden, ..shape() }), expected, "{mlp_hidden} hidden values");
        }
    }

    #[test]
    fn buffers_are_as_many_as_a_block_needs_at_a_time() {
        // The residual stream, before and after a sublayer, or beside the output of attention; queries, keys and values; the
        // hidden values of the MLP.
        let mut buffers = FusedNetwork::new(&network(&shape())).unwrap().buffers;
        buffers.sort_unstable();
        assert_eq!(buffers, [8, 8, 8, 24, 32]);
    }

    #[test]
    fn no_launch_writes_what_it_reads_or_what_is_read_later() {
        for config in [shape(), GptConfig { mlp: Mlp::Swiglu, position: Position::Rope, ..shape() }] {
            let fused = FusedNetwork::new(&network(&config)).unwrap();
            let buffer = |value: Value| fused.buffer_of[value.0];
            let mut content = vec![None; fused.buffers.len()];
            for launch in &fused.launches {
                for value in launch.inputs() {
                    assert_eq!(content[buffer(value)], Some(value));
                    assert_ne!(buffer(value), buffer(launch.output()));
                }
                content[buffer(launch.output())] = Some(launch.output());
            }
            assert_eq!(content[buffer(fused.head.x)], Some(fused.head.x));
        }
    }

    #[test]
    fn what_no_kernel_does_is_left_to_tensor_operations() {
        // A norm that something else than a product reads, and a product whose output has two readers.
        let mut net = NetworkBuilder::new(&shape());
        let (x, wte) = net.embedding("wte", 11, 8, 0.02);
        let normed = net.rms_norm(x, "norm");
        let sum = net.add(x, normed);
        assert!(FusedNetwork::new(&net.head(sum, wte)).is_none());

        let mut net = NetworkBuilder::new(&shape());
        let (x, wte) = net.embedding("wte", 11, 8, 0.02);
        let y = net.linear(x, "linear", 8, 0.02);
        let sum = net.add(x, y);
        let sum = net.add(sum, y);
        assert!(FusedNetwork::new(&net.head(sum, wte)).is_none());
    }
}
