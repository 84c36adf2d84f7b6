//! Lowering: from a network to the schedule of CPU training, with fused operations and a buffer for each value and gradient.

use std::sync::Arc;

use super::{
    buffers::BufferSpec,
    op::{TrainOp, TrainSetup},
};
use crate::{
    cpu::operand::Storage,
    ops::{Op, ResidualLinear},
    plan::{Network, ParamId, Value},
};

/// A step of the forward pass. Numbers are indices of operations of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FusedOp {
    /// One operation.
    Single(usize),
    /// A linear layer, dropout or none, and the addition of the result to the residual stream.
    Residual { linear: usize, drop: Option<usize>, add: usize },
}

/// The gradient `x^T dy` of the weight matrix of a linear layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MatrixGrad {
    /// `(in, out)`.
    pub(crate) weight: ParamId,
    /// The input of the layer, `(T, in)`.
    pub(crate) x: Value,
    /// The output of the layer, `(T, out)`, whose gradient is `dy`.
    pub(crate) y: Value,
}

/// The schedule of a network, which all sequences share.
#[derive(Debug)]
pub(crate) struct Lowered {
    steps: Vec<FusedOp>,
    /// For each step, its output where products read it and no later step writes to the same buffer: it is quantized then.
    pub(crate) quantized: Vec<Option<Value>>,
    /// For each step, the input whose gradient it is the first to add to, and which is zeroed before.
    pub(crate) zeroed_grads: Vec<Option<Value>>,
    /// The buffers of values.
    pub(crate) values: Vec<BufferSpec>,
    /// The index of each value's buffer in `values`.
    pub(crate) value_buffers: Arc<[usize]>,
    /// The buffers of gradients.
    pub(crate) grads: Vec<BufferSpec>,
    /// The index of each value's gradient in `grads`.
    pub(crate) grad_buffers: Arc<[usize]>,
    /// The weight matrices of linear layers, in parameter order.
    pub(crate) matrices: Vec<MatrixGrad>,
    /// The output of the first operation, the token embeddings `(T, C)`.
    pub(crate) embedded: Value,
}

/// The buffer index of a value without a buffer: an intermediate result of a fused step.
const UNASSIGNED: usize = usize::MAX;

impl Lowered {
    /// Lowers a network.
    pub(crate) fn new(net: &Network) -> Self {
        // The gradients of tables are computed from that of the first operation's output.
        let is_table = |op: &&Op| op.get().reads_table();
        let tables = net.ops.iter().take_while(is_table).count();
        assert!(!net.ops[tables..].iter().any(|op| is_table(&op)), "embeddings and positions come first in a network");
        let steps = fuse(net);
        let (values, value_buffers) = value_buffers(net, &steps);
        let (grads, mut grad_buffers) = grad_buffers(net);
        let quantized = steps.iter().enumerate().map(|(at, step)| {
            let output = step.output(net);
            let buffer = value_buffers[output.0];
            let later = steps[at + 1..].iter().any(|step| value_buffers[step.output(net).0] == buffer);
            (values[buffer].storage.matmul_operand && !later).then_some(output)
        });
        let zeroed_grads = zeroed_grads(net, &steps, &grad_buffers);
        let grads = share_buffers(net, &steps, &mut grad_buffers, grads);
        let matrix = |op: &Op| match op {
            Op::Linear(linear) => Some(MatrixGrad { weight: linear.weight, x: linear.x, y: linear.y }),
            _ => None,
        };
        let mut matrices: Vec<MatrixGrad> = net.ops.iter().filter_map(matrix).collect();
        matrices.sort_by_key(|grad| grad.weight.0);
        Self {
            quantized: quantized.collect(),
            zeroed_grads,
            matrices,
            embedded: net.ops[0].get().output(),
            steps,
            values,
            value_buffers: value_buffers.into(),
            grads,
            grad_buffers: grad_buffers.into(),
        }
    }

    /// Builds the steps' forms in training, with the tapes of one sequence.
    pub(crate) fn tapes(&self, setup: &TrainSetup<'_>) -> Vec<Box<dyn TrainOp>> {
        let ops = &setup.net.ops;
        let tape = |step: &FusedOp| -> Box<dyn TrainOp> {
            if let FusedOp::Residual { linear, drop, add } = *step
                && let (Op::Linear(linear), Op::Add(add)) = (&ops[linear], &ops[add])
            {
                let drop =
                    drop.and_then(|drop| if let Op::ApplyDropout(drop) = &ops[drop] { Some(drop) } else { None });
                return Box::new(ResidualLinear::new(linear, drop, add, setup));
            }
            ops[step.first()].get().training(setup)
        };
        self.steps.iter().map(tape).collect()
    }
}

impl FusedOp {
    /// The index of its first operation.
    fn first(self) -> usize {
        match self {
            Self::Single(op) => op,
            Self::Residual { linear, .. } => linear,
        }
    }

    /// The values that it reads. The first is the one whose gradient its backward pass computes first.
    fn inputs(self, net: &Network) -> Vec<Value> {
        let inputs = |op: usize| net.ops[op].get().inputs();
        match self {
            Self::Single(op) => inputs(op),
            Self::Residual { linear, add, .. } => [inputs(linear)[0], inputs(add)[0]].into(),
        }
    }

    fn output(self, net: &Network) -> Value {
        match self {
            Self::Single(op) => net.ops[op].get().output(),
            Self::Residual { add, .. } => net.ops[add].get().output(),
        }
    }
}

/// Groups the operations of a network into steps: a linear layer whose output is added to the residual stream is fused with
/// the operations that do it.
fn fuse(net: &Network) -> Vec<FusedOp> {
    let mut steps = Vec::new();
    let mut at = 0;
    while at < net.ops.len() {
        let step = match net.ops[at..] {
            [Op::Linear(ref linear), Op::Add(ref add), ..] if add.y == linear.y => {
                FusedOp::Residual { linear: at, drop: None, add: at + 1 }
            }
            [Op::Linear(ref linear), Op::ApplyDropout(ref drop), Op::Add(ref add), ..]
                if drop.x == linear.y && add.y == drop.y =>
            {
                FusedOp::Residual { linear: at, drop: Some(at + 1), add: at + 2 }
            }
            _ => FusedOp::Single(at),
        };
        at += match step {
            FusedOp::Single(_) => 1,
            FusedOp::Residual { drop, .. } => 2 + usize::from(drop.is_some()),
        };
        steps.push(step);
    }
    steps
}

/// Assigns a buffer to each value. In-place operations overwrite their input, so input and output share one.
fn value_buffers(net: &Network, steps: &[FusedOp]) -> (Vec<BufferSpec>, Vec<usize>) {
    let mut buffer_of = vec![UNASSIGNED; net.cols.len()];
    let mut buffers: Vec<BufferSpec> = Vec::new();
    for step in steps {
        let output = step.output(net);
        buffer_of[output.0] = match *step {
            FusedOp::Single(op) if net.ops[op].get().in_place() => buffer_of[step.inputs(net)[0].0],
            _ => {
                buffers.push(BufferSpec {
                    cols: net.cols(output),
                    storage: Storage { matmul_operand: false, kept: false },
                });
                buffers.len() - 1
            }
        };
    }
    for step in steps {
        for (i, input) in step.inputs(net).into_iter().enumerate() {
            let storage = &mut buffers[buffer_of[input.0]].storage;
            let op = &net.ops[step.first()];
            if matches!(op, Op::Linear(_)) && i == 0 {
                storage.matmul_operand = true;
            } else if !op.get().in_place() {
                storage.kept = true;
            }
        }
        for kept in net.ops[step.first()].get().kept() {
            buffers[buffer_of[kept.0]].storage.kept = true;
        }
    }
    buffers[buffer_of[net.head.x.0]].storage.matmul_operand = true;
    (buffers, buffer_of)
}

/// For each step, the input whose gradient it is the first to add to ([`Lowered::zeroed_grads`]).
fn zeroed_grads(net: &Network, steps: &[FusedOp], grad_buffers: &[usize]) -> Vec<Option<Value>> {
    let of_step = |(at, step): (usize, &FusedOp)| {
        let (op, input) = (net.ops[step.first()].get(), *step.inputs(net).first()?);
        let buffer = grad_buffers[input.0];
        let reads = |step: &FusedOp| step.inputs(net).iter().any(|x| grad_buffers[x.0] == buffer);
        let written = steps[at + 1..].iter().any(reads) || buffer == grad_buffers[net.head.x.0];
        // The backward pass of a norm adds to its input's gradient. That of any other operation overwrites it, so no other
        // reader of the input may write to the same buffer.
        let alone = matches!(op_of(net, *step), Op::Add(_)) || (op.in_place() && readers(net, input) == 1) || !written;
        assert!(
            op.adds_to_input_grad() || alone,
            "{op:?} reads what others read too: of all readers of a value, only norms, and additions to it, may share it; \
             put a norm before this operation, or make the value twice"
        );
        (op.adds_to_input_grad() && !written).then_some(input)
    };
    steps.iter().enumerate().map(of_step).collect()
}

/// The number of operations that read a value.
fn readers(net: &Network, value: Value) -> usize {
    net.ops.iter().filter(|op| op.get().inputs().contains(&value)).count()
}

fn op_of(net: &Network, step: FusedOp) -> &Op {
    &net.ops[step.first()]
}

/// Assigns a buffer to each gradient. The backward pass of an addition leaves the residual stream's gradient unchanged, so
/// all values of the stream share one; so do input and output of in-place operations.
fn grad_buffers(net: &Network) -> (Vec<BufferSpec>, Vec<usize>) {
    let rows = Storage { matmul_operand: false, kept: true };
    let mut buffer_of = vec![UNASSIGNED; net.cols.len()];
    let mut buffers: Vec<BufferSpec> = Vec::new();
    for op in &net.ops {
        let (inputs, output) = (op.get().inputs(), op.get().output());
        buffer_of[output.0] = match op {
            Op::Add(_) => buffer_of[inputs[0].0],
            _ if op.get().in_place() => buffer_of[inputs[0].0],
            _ => {
                let matmul_operand = matches!(op, Op::Linear(_));
                let storage = if matmul_operand { Storage { matmul_operand, kept: false } } else { rows };
                buffers.push(BufferSpec { cols: net.cols(output), storage });
                buffers.len() - 1
            }
        };
    }
    // Norms add to the f32 rows of their input's gradient, which are zeroed before the first does.
    for op in net.ops.iter().map(Op::get).filter(|op| op.adds_to_input_grad()) {
        buffers[buffer_of[op.inputs()[0].0]].storage.kept = true;
    }
    // The head writes the f32 rows of this gradient, and additions copy from them.
    buffers[buffer_of[net.head.x.0]].storage.kept = true;
    (buffers, buffer_of)
}

/// Lets gradients whose lifetimes are disjoint share a buffer. A gradient is dead after the backward pass of the operation
/// that computed the value, except those that the weights' gradients are computed from at the end.
fn share_buffers(
    net: &Network,
    steps: &[FusedOp],
    buffer_of: &mut [usize],
    buffers: Vec<BufferSpec>,
) -> Vec<BufferSpec> {
    // The step that computes the value, at which the gradient's lifetime ends, and the value's last reader, at which it
    // begins.
    let mut lifetimes = vec![(UNASSIGNED, 0); buffers.len()];
    for (at, step) in steps.iter().enumerate() {
        let output = buffer_of[step.output(net).0];
        lifetimes[output].0 = lifetimes[output].0.min(at);
        for input in step.inputs(net) {
            let buffer = buffer_of[input.0];
            lifetimes[buffer].1 = lifetimes[buffer].1.max(at);
        }
    }
    lifetimes[buffer_of[net.head.x.0]].1 = steps.len();
    let (mut shared, mut merged): (Vec<(BufferSpec, usize)>, Vec<usize>) = (Vec::new(), Vec::new());
    // In the order of the backward pass, as in linear-scan register allocation.
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&buffer| std::cmp::Reverse(lifetimes[buffer].1));
    merged.resize(buffers.len(), UNASSIGNED);
    for buffer in order {
        let (spec, (first, last)) = (buffers[buffer], lifetimes[buffer]);
        let free = shared.iter().position(|&(other, busy_until)| {
            !spec.storage.matmul_operand
                && !other.storage.matmul_operand
                && other.cols == spec.cols
                && busy_until > last
        });
        merged[buffer] = match free {
            Some(at) => {
                shared[at].1 = first;
                at
            }
            None => {
                shared.push((spec, first));
                shared.len() - 1
            }
        };
    }
    buffer_of.iter_mut().filter(|buffer| **buffer != UNASSIGNED).for_each(|buffer| *buffer = merged[*buffer]);
    shared.into_iter().map(|(spec, _)| spec).collect()
}
