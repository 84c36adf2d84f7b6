//! From a network to what CPU training runs: its operations, some of them fused, and where values and gradients are
//! stored.

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

/// A step of the forward pass, by the places of its operations in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FusedOp {
    /// One operation.
    Single(usize),
    /// A linear layer whose output, dropped or not, is added to the residual stream.
    Residual { linear: usize, drop: Option<usize>, add: usize },
}

/// A matrix with the operands of its gradient, `x^T dy`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MatrixGrad {
    pub(crate) weight: ParamId,
    /// The input of its product, and the product, whose gradient is the other operand.
    pub(crate) x: Value,
    pub(crate) y: Value,
}

/// What all sequences of a network have in common.
#[derive(Debug)]
pub(crate) struct Lowered {
    steps: Vec<FusedOp>,
    /// The output of each step, where that is complete then and is to be quantized.
    pub(crate) quantized: Vec<Option<Value>>,
    /// The input of each step to whose gradient it is the first to add: zeros, to begin with.
    pub(crate) zeroed_grads: Vec<Option<Value>>,
    pub(crate) values: Vec<BufferSpec>,
    pub(crate) value_buffers: Arc<[usize]>,
    pub(crate) grads: Vec<BufferSpec>,
    pub(crate) grad_buffers: Arc<[usize]>,
    /// In parameter order.
    pub(crate) matrices: Vec<MatrixGrad>,
    /// What the network begins with: its gradient is that of the embeddings.
    pub(crate) stream: Value,
}

/// A value that is stored nowhere.
const UNASSIGNED: usize = usize::MAX;

impl Lowered {
    pub(crate) fn new(net: &Network) -> Self {
        let steps = fuse(net);
        let (values, value_buffers) = value_buffers(net, &steps);
        let (grads, mut grad_buffers) = grad_buffers(net);
        let quantized = steps.iter().enumerate().map(|(at, step)| {
            let output = step.output(net);
            let slot = value_buffers[output.0];
            let later = steps[at + 1..].iter().any(|step| value_buffers[step.output(net).0] == slot);
            (values[slot].storage.matmul_operand && !later).then_some(output)
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
            stream: net.ops[0].get().output(),
            steps,
            values,
            value_buffers: value_buffers.into(),
            grads,
            grad_buffers: grad_buffers.into(),
        }
    }

    /// The steps with what they keep of one sequence.
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
    fn first(self) -> usize {
        match self {
            Self::Single(op) => op,
            Self::Residual { linear, .. } => linear,
        }
    }

    /// The values that it reads from their buffers; first the one whose gradient the backward pass writes first.
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

/// The steps of a network: linear layers that end in the residual stream are fused with what follows them.
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

/// A buffer for each value, but that operations in place write over their input.
fn value_buffers(net: &Network, steps: &[FusedOp]) -> (Vec<BufferSpec>, Vec<usize>) {
    let mut of = vec![UNASSIGNED; net.cols.len()];
    let mut slots: Vec<BufferSpec> = Vec::new();
    for step in steps {
        let output = step.output(net);
        of[output.0] = match *step {
            FusedOp::Single(op) if net.ops[op].get().in_place() => of[step.inputs(net)[0].0],
            _ => {
                slots.push(BufferSpec {
                    cols: net.cols(output),
                    storage: Storage { matmul_operand: false, kept: false },
                });
                slots.len() - 1
            }
        };
    }
    for step in steps {
        for (i, input) in step.inputs(net).into_iter().enumerate() {
            let storage = &mut slots[of[input.0]].storage;
            let op = &net.ops[step.first()];
            if matches!(op, Op::Linear(_)) && i == 0 {
                storage.matmul_operand = true;
            } else if !op.get().in_place() {
                storage.kept = true;
            }
        }
        for kept in net.ops[step.first()].get().kept() {
            slots[of[kept.0]].storage.kept = true;
        }
    }
    slots[of[net.head.x.0]].storage.matmul_operand = true;
    (slots, of)
}

/// The input of each step to whose gradient it is the first to add.
fn zeroed_grads(net: &Network, steps: &[FusedOp], grad_buffers: &[usize]) -> Vec<Option<Value>> {
    let of_step = |(at, step): (usize, &FusedOp)| {
        let (op, input) = (net.ops[step.first()].get(), *step.inputs(net).first()?);
        let slot = grad_buffers[input.0];
        let reads = |step: &FusedOp| step.inputs(net).iter().any(|x| grad_buffers[x.0] == slot);
        let written = steps[at + 1..].iter().any(reads) || slot == grad_buffers[net.head.x.0];
        // What a norm's backward pass finds it adds to; all others write, and so must be the only ones to do it.
        let alone = op.in_place() || matches!(op_of(net, *step), Op::Add(_)) || !written;
        assert!(op.adds_to_input_grad() || alone, "{op:?}: only norms may read what others read too");
        (op.adds_to_input_grad() && !written).then_some(input)
    };
    steps.iter().enumerate().map(of_step).collect()
}

fn op_of(net: &Network, step: FusedOp) -> &Op {
    &net.ops[step.first()]
}

/// A buffer for each gradient, but that the gradients of what is added to the residual stream leave that of the stream as
/// it is: all of them share one, as do those of inputs and outputs of operations in place.
fn grad_buffers(net: &Network) -> (Vec<BufferSpec>, Vec<usize>) {
    let rows = Storage { matmul_operand: false, kept: true };
    let mut of = vec![UNASSIGNED; net.cols.len()];
    let mut slots: Vec<BufferSpec> = Vec::new();
    for op in &net.ops {
        let (inputs, output) = (op.get().inputs(), op.get().output());
        of[output.0] = match op {
            Op::Add(_) => of[inputs[0].0],
            _ if op.get().in_place() => of[inputs[0].0],
            _ => {
                let matmul_operand = matches!(op, Op::Linear(_));
                let storage = if matmul_operand { Storage { matmul_operand, kept: false } } else { rows };
                slots.push(BufferSpec { cols: net.cols(output), storage });
                slots.len() - 1
            }
        };
    }
    // The head writes, and what is added is copied from, whole rows.
    slots[of[net.head.x.0]].storage.kept = true;
    (slots, of)
}

/// Lets gradients of which no two are alive at a time share a buffer: they are of no use once the operation that made the
/// value has gone back. Operands of the gradients of weights stay.
fn share_buffers(net: &Network, steps: &[FusedOp], of: &mut [usize], slots: Vec<BufferSpec>) -> Vec<BufferSpec> {
    // The step that makes the value, where its gradient's lifetime ends, and the last that reads it, where it begins.
    let mut lifetime = vec![(UNASSIGNED, 0); slots.len()];
    for (at, step) in steps.iter().enumerate() {
        let output = of[step.output(net).0];
        lifetime[output].0 = lifetime[output].0.min(at);
        for input in step.inputs(net) {
            let slot = of[input.0];
            lifetime[slot].1 = lifetime[slot].1.max(at);
        }
    }
    lifetime[of[net.head.x.0]].1 = steps.len();
    let (mut shared, mut place): (Vec<(BufferSpec, usize)>, Vec<usize>) = (Vec::new(), Vec::new());
    // In the order of the backward pass, so that a buffer is free again once its last user has ended.
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&slot| std::cmp::Reverse(lifetime[slot].1));
    place.resize(slots.len(), UNASSIGNED);
    for slot in order {
        let (spec, (first, last)) = (slots[slot], lifetime[slot]);
        let free = shared.iter().position(|&(other, busy_until)| {
            !spec.storage.matmul_operand
                && !other.storage.matmul_operand
                && other.cols == spec.cols
                && busy_until > last
        });
        place[slot] = match free {
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
    of.iter_mut().filter(|slot| **slot != UNASSIGNED).for_each(|slot| *slot = place[*slot]);
    shared.into_iter().map(|(spec, _)| spec).collect()
}
